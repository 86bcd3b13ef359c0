"""A decay of the learning rate that is traded for growth of the batch.

    batch = first batch / f(x)        where the schedule f has cut the rate by a factor
    rate = f(x) (B / B0)^power        1/2: Seesaw, for Adam and normalised SGD; 1: for SGD

The batch is what this file finds; the rate is `SqrtScaling` or `LinearScaling` of the batch in hand
beside the schedule itself. So where a bound holds the batch, what is left of the decay stays a
decay, whatever the bound.

Meterez et al.: Seesaw, 2025, arXiv 2510.14717; Smith, Kindermans, Ying, Le: Don't Decay the
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
"""Growth at which the cuts of a decay to 0 end; a bound on the batch comes long before."""


def growth_from_decay(
    factor: Factor, *, cut: float = 1.1, most: float = MOST, over: Budget | None = None
) -> Growth:
    """The batch grows wherever the factor has fallen by another `cut`, by as much as it fell.

    Cut k lies at the first x with f(x) <= cut^-k, and the batch there is 1 / f(x) of the first one;
    a staircase may fall by several cuts at once.

    >>> from largebatch.rules.factors import StepDecay
    >>> growth = growth_from_decay(StepDecay(at=(0.3, 0.6), factor=0.2))
    >>> growth.at, [round(b, 9) for b in growth.stages.batch]
    ((0.3, 0.6), [1.0, 5.0, 25.0])

    Args:
        factor: a schedule that falls.
        cut: above 1; the smaller, the more often the batch changes.
        most: largest growth of the batch, above 1.
        over: as in `Growth`; that of the schedule.

    Raises:
        ValueError: a factor that rises or never falls by a cut, or numbers that are too small.
    """
    if not 1.0 < cut < math.inf or not 1.0 < most < math.inf:
        raise ValueError(
            f"A decay is traded in cuts above 1 up to a growth above 1, as in "
            f"lb.methods.seesaw(cut=1.1); got cut={cut!r}, most={most!r}."
        )
    grid = [factor(i / 1000) for i in range(1001)]
    if any(b > a * (1.0 + 1e-12) for a, b in pairwise(grid)):
        raise ValueError(
            f"{factor} rises, and only a decay is traded for growth: put a warm-up apart, "
            "lb.WarmUp(fraction=0.05), or use Cosine()."
        )
    at: list[float] = []
    batch = [1.0]
    level = 1.0
    while level > 1.0 / most:
        # the next cut below what is reached, so that a staircase's one step is one stage
        reached = math.floor(math.log(batch[-1]) / math.log(cut) + 1e-9)
        level = max(cut ** -(reached + 1), 1.0 / most)
        x = _first_at_most(factor, level * (1.0 + 1e-12))
        if x is None or x >= 1.0 or (at and x <= at[-1]):
            break
        at.append(x)
        batch.append(min(1.0 / factor(x), most) if factor(x) > 0.0 else most)
    if not at:
        raise ValueError(
            f"{factor} falls by less than {cut} before its end, so there is nothing to trade: use "
            "Cosine(), or a cut that is nearer to 1."
        )
    return Growth(stages=Stages(batch=tuple(batch)), at=tuple(at), over=over)


def _first_at_most(factor: Factor, level: float) -> float | None:
    """The least x in [0, 1], to the last bit, at which a falling factor is at most `level`."""
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
