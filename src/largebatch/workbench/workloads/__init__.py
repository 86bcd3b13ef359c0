"""Workloads: what `largebatch train` and the experiments run on, and how to bring one's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

from largebatch.core.errors import LargeBatchError
from largebatch.workbench.workloads.data import Batch, Data, DataDamaged, DataMissing, Split
from largebatch.workbench.workloads.digits import digits
from largebatch.workbench.workloads.evaluate import evaluate
from largebatch.workbench.workloads.fashion_mnist import (
    fashion_cnn,
    fashion_logistic,
    fashion_resnet8,
)
from largebatch.workbench.workloads.losses import (
    classification_loss,
    classification_metrics,
    next_byte_loss,
    next_byte_metrics,
)
from largebatch.workbench.workloads.optimizers import adamw, sgd
from largebatch.workbench.workloads.stdlib_text import stdlib_transformer, stdlib_transformer_sgd
from largebatch.workbench.workloads.workload import OptimizerFactory, Workload

__all__ = [
    "Batch",
    "Data",
    "DataDamaged",
    "DataMissing",
    "OptimizerFactory",
    "Split",
    "Workload",
    "adamw",
    "classification_loss",
    "classification_metrics",
    "evaluate",
    "load",
    "names",
    "next_byte_loss",
    "next_byte_metrics",
    "sgd",
]

REGISTERED: Mapping[str, Callable[[], Workload]] = MappingProxyType(
    {
        "digits": digits,
        "fashion-cnn": fashion_cnn,
        "fashion-logistic": fashion_logistic,
        "fashion-resnet8": fashion_resnet8,
        "stdlib-transformer": stdlib_transformer,
        "stdlib-transformer-sgd": stdlib_transformer_sgd,
    }
)
"""One line a workload of our own."""


def names() -> tuple[str, ...]:
    """The registered workloads.

    >>> names()[0]
    'digits'
    """
    return tuple(REGISTERED)


def load(name: str) -> Workload:
    """The workload of that name, or a user's own as "package.module:factory". No data is read.

    >>> load("fashion-cnn").base_batch_size
    64

    Args:
        name: one of `names()`, or an importable module and in it a callable without arguments
            that returns a `Workload`.

    Raises:
        ValueError: an unknown name, or a path that does not lead to a workload.
    """
    if ":" in name:
        return _own(name)
    if name in REGISTERED:
        return REGISTERED[name]()
    close = difflib.get_close_matches(name, REGISTERED, n=1)
    raise ValueError(
        f"There is no workload {name!r}."
        + (f" Did you mean {close[0]!r}?" if close else "")
        + f" Known: {', '.join(REGISTERED)}; or your own: load('package.module:factory')."
    )


def _own(path: str) -> Workload:
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(f"{path!r} is not of the form 'package.module:factory', no file name.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there and misses one of its own imports
        raise ValueError(
            f"{path!r}: Python finds no module {error.name!r}. Run from the directory that holds "
            "it, or put that on the path: export PYTHONPATH=/path/to/it"
        ) from error
    if attribute not in vars(module):
        close = difflib.get_close_matches(attribute, vars(module), n=1)
        raise ValueError(
            f"{path!r}: module {module_name!r} has no {attribute!r}."
            + (f" Did you mean '{module_name}:{close[0]}'?" if close else "")
        )
    factory = vars(module)[attribute]
    if not callable(factory):
        raise ValueError(
            f"{path!r} is no function but {factory!r}. Write one without arguments that returns a "
            f"Workload: def {attribute}() -> Workload: ..."
        )
    workload = _made(factory, path)
    if not isinstance(workload, Workload):
        raise ValueError(
            f"{path!r} returned {workload!r}, not a Workload: return Workload(name=..., ...)"
        )
    return workload


def _made(factory: Callable[[], object], path: str) -> object:
    module_name, _, attribute = path.partition(":")
    try:
        return factory()
    except LargeBatchError:
        raise  # it has its remedy
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        if isinstance(error, TypeError) and _needs_arguments(factory):
            raise ValueError(
                f"{path!r} needs arguments ({cause}). Write one without that returns a Workload: "
                "def workload() -> Workload: ..."
            ) from error
        raise ValueError(
            f"{path!r} raised {cause}. See where: "
            f'python -c "import {module_name} as m; m.{attribute}()"'
        ) from error


def _needs_arguments(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # a builtin may have no signature
        return True
    return False
