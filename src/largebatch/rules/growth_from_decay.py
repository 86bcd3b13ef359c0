"""Grow the batch in exchange for a decay of the learning rate.

    batch size = first batch size / f(x)
    learning rate = f(x) * (B / B0)^power

f is the factor of the schedule, and x is the fraction of the budget. The power is 1/2 in Seesaw,
which is for Adam and normalized SGD, and 1 for SGD.

The functions in this file compute the batch sizes. The learning rate comes from two other rules:
`SqrtScaling` or `LinearScaling` of the current batch, and the schedule itself. If a bound keeps the
batch smaller than the table, the learning rate decays by the part of the factor that the batch
growth does not cover.

Meterez, Morwani, Wu, Oncescu, Pehlevan, Kakade: Seesaw: Accelerating Training by Balancing Learning
Rate and Batch Size Scheduling, 2025, arXiv 2510.14717; Smith, Kindermans, Ying, Le: Don't Decay the
Learning Rate, Increase the Batch Size, 2017, arXiv 1711.00489.
"""

from __future__ import annotations

import math
from itertools import pairwise

from largebatch.core.measurement import Budget
from largebatch.rules.factors import Factor
from largebatch.rules.growth import Growth
from largebatch.rules.stages import Stages

MOST = 2.0**20
"""Largest factor on the first batch size; the table ends at this factor if the schedule decays to
0. A bound on the batch normally takes effect before the batch has grown so much."""


def growth_from_decay(
    factor: Factor, *, cut: float = 1.1, most: float = MOST, over: Budget | None = None
) -> Growth:
    """Return the rule that grows the batch each time the schedule's factor has fallen by the ratio
    `cut`.

    Cut k lies at the first x with f(x) <= cut^-k, and the batch size at cut k is 1 / f(x) times the
    first batch size. A step decay may fall by several cuts at once.

    >>> from largebatch.rules.factors import StepDecay
    >>> growth = growth_from_decay(StepDecay(at=(0.3, 0.6), factor=0.2))
    >>> growth.at, [round(b, 9) for b in growth.stages.batch]
    ((0.3, 0.6), [1.0, 5.0, 25.0])

    Args:
        factor: Factor of a schedule, which must fall.
        cut: Ratio by which the factor falls from one change of the batch to the next, above 1. The
            smaller the cut, the more often the batch changes.
        most: Largest factor on the first batch size, above 1.
        over: Length that the fractions refer to, as in `Growth`; pass the schedule's `over`.

    Raises:
        ValueError: If the factor rises or never falls by the ratio `cut`, or if `cut` or `most` is
            not above 1.
    """
    if not 1.0 < cut < math.inf or not 1.0 < most < math.inf:
        raise ValueError(
            f"cut={cut!r} and most={most!r} were given, but cut and most must be above 1. "
            "Example: lb.methods.seesaw(cut=1.1)"
        )
    grid = [factor(i / 1000) for i in range(1001)]
    if any(b > a * (1.0 + 1e-12) for a, b in pairwise(grid)):
        raise ValueError(
            f"{factor} was given, but it rises, and only a decay can become growth of the batch. "
            "Use Cosine(), and add a warm-up as a separate rule: lb.WarmUp(fraction=0.05)"
        )
    at: list[float] = []
    batch = [1.0]
    level = 1.0
    while level > 1.0 / most:
        # Take the next cut below the value reached, so that one step of a step decay is one stage.
        reached = math.floor(math.log(batch[-1]) / math.log(cut) + 1e-9)
        level = max(cut ** -(reached + 1), 1.0 / most)
        x = _first_at_most(factor, level * (1.0 + 1e-12))
        if x is None or x >= 1.0 or (at and x <= at[-1]):
            break
        at.append(x)
        batch.append(min(1.0 / factor(x), most) if factor(x) > 0.0 else most)
    if not at:
        raise ValueError(
            f"{factor} was given, but it falls by less than the ratio cut={cut} in the whole run, "
            "so the batch would never grow. Use a cut closer to 1, or another schedule: Cosine()"
        )
    return Growth(stages=Stages(batch=tuple(batch)), at=tuple(at), over=over)


def _first_at_most(factor: Factor, level: float) -> float | None:
    """Return the smallest x in [0, 1], exact to the last bit, at which the factor is at most
    `level`."""
    if factor(1.0) > level:
        return None
    above, at_most = 0.0, 1.0
    while True:
        middle = 0.5 * (above + at_most)
        if middle in (above, at_most):
            return at_most
        if factor(middle) <= level:
            at_most = middle
        else:
            above = middle
