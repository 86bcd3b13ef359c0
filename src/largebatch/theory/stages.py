"""Stages that grow by factors, and how long each is within a budget.

    stage m = 0, 1, ...:  batch b d^m,  learning rate lr g^m,  steps K k^m
    length of stage m  =  total r^m / (1 + r + ... + r^(count - 1))

With r the factor on a stage's length in the budget's unit. On the growth relation it is d / g^2 in
steps and (d / g)^2 in samples or epochs: 2 where batch and rate grow by 2 and sqrt(2), 4 where the
batch alone doubles. Derived here.
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
    """Stages that grow by the same factors, not rounded.

    >>> first = Stage(steps=100, batch_size=16, lr=0.1)
    >>> [s.batch_size for s in geometric_stages(first, 3, batch_growth=2.0)]
    [16.0, 32.0, 64.0]

    Args:
        first: the first of them.
        count: number of stages, at least 1.
        batch_growth, lr_growth, steps_growth: from stage to stage, above 0.

    Raises:
        ValueError: no stage, a factor that is not above 0, or numbers past the range of floats.
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
            f"{count} stages with the factors {factors} leave the range of floating point; take "
            "fewer stages or factors nearer to 1."
        ) from error


def stage_lengths(total: float, count: int, *, growth: float) -> tuple[float, ...]:
    """A budget cut into stages whose lengths grow by a factor, in the budget's unit.

    >>> stage_lengths(70.0, 3, growth=2.0)
    (10.0, 20.0, 40.0)

    Args:
        total: the budget, above 0.
        count: number of stages, at least 1.
        growth: of a stage's length over the one before, above 0.

    Raises:
        ValueError: a number outside its range.
    """
    _check_count(count)
    above_zero("stage_lengths(200.0, 4, growth=2.0)", total=total, growth=growth)
    largest = max(0.0, (count - 1) * math.log(growth))
    parts = [math.exp(m * math.log(growth) - largest) for m in range(count)]
    whole = math.fsum(parts)
    return tuple(total * part / whole for part in parts)


def stage_ends(total: int, count: int, *, growth: float) -> tuple[int, ...]:
    """Where the stages of `stage_lengths` end, rounded to whole units; the last is `total`.

    >>> stage_ends(200, 4, growth=2.0)
    (13, 40, 93, 200)

    Raises:
        ValueError: as `stage_lengths`, or a stage that rounds to nothing.
    """
    lengths = stage_lengths(total, count, growth=growth)
    ends = *(round(end) for end in itertools.accumulate(lengths[:-1])), total
    if min(end - start for start, end in itertools.pairwise((0, *ends))) < 1:
        raise ValueError(
            f"{count} stages do not fit into {total}: one is never reached, the ends would be "
            f"{list(ends)}. Take fewer stages or a growth nearer to 1 than {growth!r}."
        )
    return ends


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count is a number of stages, at least 1; got {count!r}.")
