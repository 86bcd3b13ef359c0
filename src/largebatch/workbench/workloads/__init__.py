"""Define the built-in workloads and load a workload by its name or from your own code."""

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
"""Function that makes each built-in workload, by the workload's name."""


def names() -> tuple[str, ...]:
    """Return the names of the built-in workloads.

    >>> names()[0]
    'digits'
    """
    return tuple(REGISTERED)


def load(name: str) -> Workload:
    """Return the workload with the given name, without reading its data.

    >>> load("fashion-cnn").base_batch_size
    64

    Args:
        name: One of `names()`, or "package.module:factory" for your own workload. The factory is a
            function without arguments that returns a `Workload`.

    Raises:
        ValueError: The name is unknown, or the factory cannot be imported or returns no workload.
    """
    if ":" in name:
        return _own(name)
    if name in REGISTERED:
        return REGISTERED[name]()
    close = difflib.get_close_matches(name, REGISTERED, n=1)
    raise ValueError(
        f"There is no workload {name!r}."
        + (f" Did you mean {close[0]!r}?" if close else "")
        + f" The workloads are {', '.join(REGISTERED)}. For your own workload, write "
        "'package.module:factory'."
    )


def _own(path: str) -> Workload:
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(
            f"The workload {path!r} was given, but a workload of your own must have the form "
            "'package.module:factory', without a file name. Example: 'my_package.my_module:make'"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # The module was found, but one of its own imports was not.
        raise ValueError(
            f"Python finds no module {error.name!r} for the workload {path!r}. Start Python in the "
            "directory that holds the module, or add this directory to the path: export "
            "PYTHONPATH=/path/to/directory"
        ) from error
    if attribute not in vars(module):
        close = difflib.get_close_matches(attribute, vars(module), n=1)
        raise ValueError(
            f"The module {module_name!r} has no function {attribute!r} for the workload {path!r}."
            + (f" Did you mean '{module_name}:{close[0]}'?" if close else "")
        )
    factory = vars(module)[attribute]
    if not callable(factory):
        raise ValueError(
            f"The workload {path!r} must be a function, but it is {factory!r}. Write a function "
            f"without arguments that returns a Workload: def {attribute}() -> Workload: ..."
        )
    workload = _made(factory, path)
    if not isinstance(workload, Workload):
        raise ValueError(
            f"The function {path!r} returned {workload!r}, but it must return a Workload. Write: "
            "return Workload(name=..., ...)"
        )
    return workload


def _made(factory: Callable[[], object], path: str) -> object:
    module_name, _, attribute = path.partition(":")
    try:
        return factory()
    except LargeBatchError:
        raise  # Errors of this package already name a fix.
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        if isinstance(error, TypeError) and _needs_arguments(factory):
            raise ValueError(
                f"The function {path!r} needs arguments ({cause}). Write a function without "
                "arguments that returns a Workload: def workload() -> Workload: ..."
            ) from error
        raise ValueError(
            f"The function {path!r} raised {cause}. To see the full traceback, run: "
            f'python -c "import {module_name} as m; m.{attribute}()"'
        ) from error


def _needs_arguments(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # A built-in function may have no signature.
        return True
    return False
