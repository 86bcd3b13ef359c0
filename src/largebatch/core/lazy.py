"""Public names that are imported on first use, from one static table per package."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str,
    names: Mapping[str, str],
    *,
    modules: Mapping[str, str] | None = None,
    moved: Mapping[str, str] | None = None,
) -> Callable[[str], Any]:
    """Return a module's `__getattr__`, which imports each public name when it is first used.

        __getattr__ = lazy_names(__name__, {"AdaScale": "largebatch.rules.adascale"})

    A name is looked up once; afterwards it stands in the module like any other. Type checkers do
    not follow `__getattr__`, so the module repeats the imports below `if TYPE_CHECKING`.

    Args:
        package: full name of the module, `__name__`.
        names: public name -> full name of the module that defines it.
        modules: public name of a namespace -> full name of that module.
        moved: name of an earlier version -> where it is now, such as `lb.rules.CABS`. Its first use
            gives a `DeprecationWarning` that says where it is now.

    Raises:
        AttributeError: from the returned function, for an unknown name.
    """
    spaces, old = modules or {}, moved or {}

    def resolve(name: str) -> Any:
        if name in old:
            warnings.warn(
                f"{package}.{name} has moved. Use {old[name]}. "
                "The old name will be removed in version 0.3.",
                DeprecationWarning,
                stacklevel=2,
            )
            value = _at(old[name])
        elif name in names:
            value = getattr(import_module(names[name]), name)
        elif name in spaces:
            value = import_module(spaces[name])
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return resolve


def _at(place: str) -> Any:
    """Return the value at a place such as `lb.rules.kinds.RULES`: the last part of a module."""
    *parents, name = place.split(".")
    return getattr(import_module(".".join(["largebatch", *parents[1:]])), name)
