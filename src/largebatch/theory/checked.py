"""What every formula refuses: numbers outside its domain."""

from __future__ import annotations

import math


def above_zero(example: str, **values: float) -> None:
    """Refuses what is not a finite number above 0.

    >>> above_zero("f(lr=0.1)", lr=-1.0)
    Traceback (most recent call last):
    ValueError: lr is a finite number above 0, as in f(lr=0.1); got -1.0.

    Args:
        example: a call that is right.
        values: by their names.

    Raises:
        ValueError: one of them is not above 0, or not finite.
    """
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} is a finite number above 0, as in {example}; got {value!r}.")


def not_negative(example: str, **values: float) -> None:
    """Refuses what is not a finite number of at least 0.

    >>> not_negative("f(sqnorm=0.0)", sqnorm=-1.0)
    Traceback (most recent call last):
    ValueError: sqnorm is a finite number of at least 0, as in f(sqnorm=0.0); got -1.0.

    Raises:
        ValueError: one of them is negative or not finite.
    """
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise ValueError(
                f"{name} is a finite number of at least 0, as in {example}; got {value!r}."
            )
