"""Look up the rule and the optimizer of a method by its name."""

from __future__ import annotations

import difflib

from largebatch.core.rule import Rule, label_of
from largebatch.methods import METHODS, Method


def rule_of(method: str | Rule) -> tuple[Rule, str]:
    """Return the rule and the label of a method that is given by its name or as a rule.

    Raises:
        ValueError: The name is unknown.
    """
    if not isinstance(method, str):
        return method, label_of(method)
    return method_named(method).rule(), method


def optimizer_of(method: str | Rule) -> str | None:
    """Return the kind of optimizer that a method needs, or None if it uses the workload's own.

    Raises:
        ValueError: The name is unknown.
    """
    return method_named(method).optimizer if isinstance(method, str) else None


def method_named(name: str) -> Method:
    """Return the method with the given name.

    >>> method_named("adascale").own_clock
    True

    Raises:
        ValueError: The name is unknown. The message suggests the closest name.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        raise ValueError(
            f"There is no method {name!r}."
            + (f" Did you mean {close[0]!r}?" if close else "")
            + f" The methods are {', '.join(METHODS)}. For their descriptions, run: largebatch "
            "methods"
        )
    return METHODS[name]
