"""Refuses arguments of `AutoWarmUp`, each by its name."""

from __future__ import annotations

import math

from largebatch.core.number_checks import is_count, is_number


def check_range(*, low: object, high: object) -> None:
    """Refuse learning rates between which nothing can rise.

    Raises:
        ValueError: one that is no number, or not 0 < low < high < infinity.
    """
    for name, value in (("low", low), ("high", high)):
        if not is_number(value):
            raise ValueError(
                f"{name}={value!r} was given, but it is a learning rate, a number above 0. "
                "lb.AutoWarmUp(low=1e-5, high=1.0)"
            )
    if not 0.0 < low < high < math.inf:  # type: ignore[operator]
        raise ValueError(
            f"low={low!r} and high={high!r} were given, but the learning rate rises from a low "
            "one above 0 to a higher one. lb.AutoWarmUp(low=1e-5, high=1.0)"
        )


def check_part(
    name: str, value: object, *, usual: float, least: float = 0.0, one: bool = True
) -> None:
    """Refuse what is no part of something.

    Args:
        name: of the argument.
        value: that was given.
        usual: a value for the line to paste.
        least: the smallest part; 0 itself is none.
        one: whether the whole is a part.

    Raises:
        ValueError: no number, or outside of the bounds.
    """
    above = is_number(value) and value > 0.0 and value >= least  # type: ignore[operator]
    if not above or value > 1.0 or (value == 1.0 and not one):  # type: ignore[operator]
        raise ValueError(
            f"{name}={value!r} was given, but it is a number "
            f"{f'of at least {least:g}' if least else 'above 0'} and "
            f"{'at most' if one else 'below'} 1. lb.AutoWarmUp({name}={usual:g})"
        )


def check_words_and_counts(*, growth: object, patience: object, decay: object) -> None:
    """Refuse a way to rise that is not known, a count that is not whole, and a factor that cannot
    be called.

    Raises:
        ValueError: naming the argument.
    """
    if growth not in ("exponential", "linear"):
        raise ValueError(
            f'growth={growth!r} was given, but the learning rate rises "exponential" or "linear". '
            'lb.AutoWarmUp(growth="exponential")'
        )
    if not is_count(patience, least=1):
        raise ValueError(
            f"patience={patience!r} was given, but it is a whole number of checks, 1 or more. "
            "lb.AutoWarmUp(patience=4)"
        )
    if not callable(decay):
        raise ValueError(
            f"decay={decay!r} was given, but it is a factor that is called with the part of the "
            "decay that is over. lb.AutoWarmUp(decay=lb.Cosine())"
        )
