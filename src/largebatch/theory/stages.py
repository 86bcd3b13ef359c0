"""Compute stages whose batch size, learning rate and number of steps grow by constant factors.

    stage m = 0, 1, ...:  batch b * d^m,  learning rate lr * g^m,  steps K * k^m
    length of stage m  =  total * r^m / (1 + r + ... + r^(count - 1))

The factor r is the growth of a stage's length, in the unit of the budget. On the growth relation d
= g^2 * k (see `largebatch.theory.growth`), r is d / g^2 in steps and (d / g)^2 in samples or
epochs. In samples, r is 2 if the batch size grows by 2 and the learning rate by sqrt(2) per stage.
In samples, r is 4 if the batch size doubles and the learning rate is constant. The formulas were
derived for largebatch.
"""

from __future__ import annotations

import itertools
import math

from largebatch.theory.bound import Stage
from largebatch.theory.checked import above_zero


def geometric_stages(
    first: Stage,
    count: int,
    *,
    batch_growth: float,
    lr_growth: float = 1.0,
    steps_growth: float = 1.0,
) -> tuple[Stage, ...]:
    """Return stages that grow by constant factors. The numbers are not rounded.

    >>> first = Stage(steps=100, batch_size=16, lr=0.1)
    >>> [s.batch_size for s in geometric_stages(first, 3, batch_growth=2.0)]
    [16.0, 32.0, 64.0]

    Args:
        first: First stage.
        count: Number of stages, at least 1.
        batch_growth: Factor of the batch size from stage to stage, above 0.
        lr_growth: Factor of the learning rate from stage to stage, above 0.
        steps_growth: Factor of the number of steps from stage to stage, above 0.

    Raises:
        ValueError: `count` is below 1, a factor is not above 0, or a number is too large or too
            small for a float.
    """
    _check_count(count)
    factors = {"batch_growth": batch_growth, "lr_growth": lr_growth, "steps_growth": steps_growth}
    above_zero("geometric_stages(first, 5, batch_growth=2.0)", **factors)
    try:
        return tuple(
            Stage(
                steps=first.steps * steps_growth**m,
                batch_size=first.batch_size * batch_growth**m,
                lr=first.lr * lr_growth**m,
            )
            for m in range(count)
        )
    except (OverflowError, ValueError) as error:
        raise ValueError(
            f"{count} stages with the factors {factors} give numbers that are too large or too "
            "small for a float. Pass fewer stages, or factors closer to 1."
        ) from error


def stage_lengths(total: float, count: int, *, growth: float) -> tuple[float, ...]:
    """Return the lengths of stages that share a budget and grow by a constant factor.

    >>> stage_lengths(70.0, 3, growth=2.0)
    (10.0, 20.0, 40.0)

    Args:
        total: Budget, above 0, in any unit.
        count: Number of stages, at least 1.
        growth: Length of a stage divided by the length of the stage before it, above 0.

    Raises:
        ValueError: An argument is outside its range.
    """
    _check_count(count)
    above_zero("stage_lengths(200.0, 4, growth=2.0)", total=total, growth=growth)
    largest = max(0.0, (count - 1) * math.log(growth))
    parts = [math.exp(m * math.log(growth) - largest) for m in range(count)]
    whole = math.fsum(parts)
    return tuple(total * part / whole for part in parts)


def stage_ends(total: int, count: int, *, growth: float) -> tuple[int, ...]:
    """Return the ends of the stages of `stage_lengths`, rounded to whole units.

    The last end is `total`.

    >>> stage_ends(200, 4, growth=2.0)
    (13, 40, 93, 200)

    Args:
        total: Budget, above 0, in any unit.
        count: Number of stages, at least 1.
        growth: Length of a stage divided by the length of the stage before it, above 0.

    Raises:
        ValueError: An argument is outside its range, or a stage would have the length 0 after
            rounding.
    """
    lengths = stage_lengths(total, count, growth=growth)
    ends = *(round(end) for end in itertools.accumulate(lengths[:-1])), total
    if min(end - start for start, end in itertools.pairwise((0, *ends))) < 1:
        raise ValueError(
            f"{count} stages do not fit into {total} units: the ends would be {list(ends)}, so a "
            f"stage would have the length 0. Pass fewer stages, or a growth closer to 1 than "
            f"{growth!r}."
        )
    return ends


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(
            f"count={count!r} was given, but it must be a number of stages, at least 1. Pass "
            "count=4."
        )
