"""Check the arguments of formulas, and reject numbers that are outside the domain of a formula."""

from __future__ import annotations

import math


def above_zero(example: str, **values: float) -> None:
    """Raise an error if a value is not a finite number above 0.

    >>> above_zero("f(lr=0.1)", lr=-1.0)
    Traceback (most recent call last):
    ValueError: lr=-1.0 was given, but lr must be a finite number above 0. Example: f(lr=0.1).

    Args:
        example: Call with valid values, for the error message.
        values: Values to check, by name.

    Raises:
        ValueError: A value is not finite or not above 0.
    """
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ValueError(
                f"{name}={value!r} was given, but {name} must be a finite number above 0. "
                f"Example: {example}."
            )


def not_negative(example: str, **values: float) -> None:
    """Raise an error if a value is not a finite number of at least 0.

    >>> not_negative("f(x=0.0)", x=-1.0)
    Traceback (most recent call last):
    ValueError: x=-1.0 was given, but x must be finite and at least 0. Example: f(x=0.0).

    Args:
        example: Call with valid values, for the error message.
        values: Values to check, by name.

    Raises:
        ValueError: A value is negative or not finite.
    """
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise ValueError(
                f"{name}={value!r} was given, but {name} must be finite and at least 0. "
                f"Example: {example}."
            )
