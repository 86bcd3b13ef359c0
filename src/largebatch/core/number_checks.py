"""Check whether an argument is a number or an integer of any numeric library."""

from __future__ import annotations

from numbers import Integral, Real


def is_count(value: object, *, least: int) -> bool:
    """Return whether a value is an integer of at least `least`. Booleans are rejected.

    >>> is_count(3, least=1), is_count(0, least=1), is_count(2.0, least=1), is_count(True, least=1)
    (True, False, False, False)

    Args:
        value: Value of any type.
        least: Smallest accepted integer.
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object) -> bool:
    """Return whether a value is a real number. Booleans are rejected.

    >>> is_number(0.5), is_number(1), is_number("1"), is_number(None), is_number(True)
    (True, True, False, False, False)

    Args:
        value: Value of any type.
    """
    return isinstance(value, Real) and not isinstance(value, bool)
