"""Import public names on first use, from one static table per package."""

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
    """Return a `__getattr__` for a module that imports each public name on its first use.

        __getattr__ = lazy_names(__name__, {"AdaScale": "largebatch.rules.adascale"})

    Each public name is looked up once and is then an ordinary attribute of the module. Type
    checkers do not follow `__getattr__`, so the module must repeat the imports in a block for
    `TYPE_CHECKING`.

    Args:
        package: Full name of the module, `__name__`.
        names: Public names, each with the full name of the module that defines it.
        modules: Public names of namespaces, each with the full name of the module behind it.
        moved: Names of an earlier version, each with its new place, such as `lb.rules.CABS`. The
            first use of a moved name gives a `DeprecationWarning` that contains the new place.

    Raises:
        AttributeError: The returned `__getattr__` was called with an unknown name.
    """
    spaces, old = modules or {}, moved or {}

    def resolve(name: str) -> Any:
        if name in old:
            warnings.warn(
                f"{package}.{name} has moved. Use {old[name]}. "
                f"The name {package}.{name} will be removed in version 0.3.",
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
    """Return the value of a dotted name, such as `lb.rules.kinds.RULES`."""
    *parents, name = place.split(".")
    return getattr(import_module(".".join(["largebatch", *parents[1:]])), name)
