"""Check the arguments of `AutoWarmUp`, and name the wrong argument in the error."""

from __future__ import annotations

import math

from largebatch.core.number_checks import is_count, is_number


def check_range(*, low: object, high: object) -> None:
    """Check that the learning rates `low` and `high` are numbers with 0 < low < high < infinity.

    Raises:
        ValueError: If `low` or `high` is not a number, or if 0 < low < high < infinity does not
            hold.
    """
    for name, value in (("low", low), ("high", high)):
        if not is_number(value):
            raise ValueError(
                f"{name}={value!r} was given, but {name} is a learning rate and must be a number "
                "above 0. Example: lb.AutoWarmUp(low=1e-5, high=1.0)"
            )
    if not 0.0 < low < high < math.inf:  # type: ignore[operator]
        raise ValueError(
            f"low={low!r} and high={high!r} were given, but low must be above 0 and high above "
            "low. Example: lb.AutoWarmUp(low=1e-5, high=1.0)"
        )


def check_part(
    name: str, value: object, *, usual: float, least: float = 0.0, one: bool = True
) -> None:
    """Check that an argument is a fraction.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        usual: Valid value for the example in the message.
        least: Smallest allowed fraction; if `least` is 0, the fraction must be above 0.
        one: Whether the value 1 is allowed.

    Raises:
        ValueError: If the value is not a number or lies outside the bounds.
    """
    above = is_number(value) and value > 0.0 and value >= least  # type: ignore[operator]
    if not above or value > 1.0 or (value == 1.0 and not one):  # type: ignore[operator]
        raise ValueError(
            f"{name}={value!r} was given, but {name} must be a number "
            f"{f'of at least {least:g}' if least else 'above 0'} and "
            f"{'at most' if one else 'below'} 1. Example: lb.AutoWarmUp({name}={usual:g})"
        )


def check_words_and_counts(*, growth: object, patience: object, decay: object) -> None:
    """Check that `growth` is known, `patience` is a whole number, and `decay` can be called.

    Raises:
        ValueError: If `growth`, `patience` or `decay` is not valid; the message names the argument.
    """
    if growth not in ("exponential", "linear"):
        raise ValueError(
            f'growth={growth!r} was given, but growth must be "exponential" or "linear". '
            'Example: lb.AutoWarmUp(growth="exponential")'
        )
    if not is_count(patience, least=1):
        raise ValueError(
            f"patience={patience!r} was given, but patience must be a whole number of checks, 1 or "
            "more. Example: lb.AutoWarmUp(patience=4)"
        )
    if not callable(decay):
        raise ValueError(
            f"decay={decay!r} was given, but decay must be a factor that can be called with a "
            "fraction in [0, 1]. Example: lb.AutoWarmUp(decay=lb.Cosine())"
        )
