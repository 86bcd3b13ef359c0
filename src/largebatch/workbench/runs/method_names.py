"""Rules and optimizers of methods that are given by name."""

from __future__ import annotations

import difflib

from largebatch.core.rule import Rule, label_of
from largebatch.methods import METHODS, Method


def rule_of(method: str | Rule) -> tuple[Rule, str]:
    """Return the rule of a method's name, or the given rule, and its label.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(method, str):
        return method, label_of(method)
    return method_named(method).rule(), method


def optimizer_of(method: str | Rule) -> str | None:
    """Return the kind of optimizer that a method brings; None for the workload's own.

    Raises:
        ValueError: an unknown name.
    """
    return method_named(method).optimizer if isinstance(method, str) else None


def method_named(name: str) -> Method:
    """Return the method of a name.

    >>> method_named("adascale").own_clock
    True

    Raises:
        ValueError: an unknown name, with the closest one.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        raise ValueError(
            f"There is no method {name!r}."
            + (f" Did you mean {close[0]!r}?" if close else "")
            + f" Known: {', '.join(METHODS)}; see: largebatch methods"
        )
    return METHODS[name]
