"""Compute the critical batch size from the excess loss of each tested batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NotEnough
from largebatch.analysis.student import Mean, mean_of


def critical_on_grid(
    base: int, batch_sizes: Sequence[int], excess: Sequence[Mean], *, tolerance: float
) -> Range | NotEnough:
    """Return the largest tested batch size whose excess loss is within the tolerance.

    The excess loss of a batch size is a mean with a confidence interval. A batch size is accepted
    if the mean is at most the tolerance. A batch size is clearly accepted if the upper bound is at
    most the tolerance, and clearly rejected if the lower bound is above the tolerance. The upper
    bound of the result is the smallest clearly rejected batch size. The lower bound of the result
    is the largest clearly accepted batch size below the upper bound, or 0 if no clearly accepted
    batch size is below the upper bound.

    >>> held, open, worse = (
    ...     Mean(value=v, low=v - 0.01, high=v + 0.01, count=5) for v in (0.0, 0.015, 0.05))
    >>> print(critical_on_grid(16, [32, 64, 128], [held, open, worse], tolerance=0.02))
    64 [32, 128]

    Args:
        base: Base batch size B, in samples. The base batch size is accepted by definition.
        batch_sizes: Tested batch sizes in samples, sorted from the smallest.
        excess: Excess loss of each batch size, as a fraction of the base run's loss.
        tolerance: Largest accepted excess loss, above 0.
    """
    pairs = list(zip(batch_sizes, excess, strict=True))
    worse = min((b for b, e in pairs if _low(e) > tolerance), default=math.inf)
    held = [b for b, e in pairs if b < worse and e.value <= tolerance]
    sure = [b for b in held for c, e in pairs if c == b and _high(e) <= tolerance]
    if not sure and math.isinf(worse):
        return NotEnough(
            reason="the losses of the branches differ between seeds by more than the tolerance",
            needed="more seeds, a longer run, or a larger tolerance",
        )
    return Range(
        value=float(max(held, default=base)), low=float(max(sure, default=0)), high=float(worse)
    )


def mean_excess(excess: Sequence[float]) -> Mean:
    """Return the mean excess loss over the seeds, or infinity if any seed diverged."""
    if not all(map(math.isfinite, excess)):
        return Mean(value=math.inf, low=math.inf, high=math.inf, count=len(excess))
    return mean_of(excess)


def _low(mean: Mean) -> float:
    return mean.value if mean.low is None else mean.low


def _high(mean: Mean) -> float:
    return mean.value if mean.high is None else mean.high
