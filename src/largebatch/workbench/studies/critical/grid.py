"""The critical batch among doublings of the base batch, from what each loses: pure formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NotEnough
from largebatch.analysis.student import Mean, mean_of


def critical_on_grid(
    base: int, batch_sizes: Sequence[int], excess: Sequence[Mean], *, tolerance: float
) -> Range | NotEnough:
    """The largest batch that holds, in units of the grid, where none loses less than a smaller one.

    A batch holds where the mean excess is within the tolerance, surely where the whole interval is,
    and is surely worse where none of it is. The range ends at the first batch that is surely worse
    and begins at the largest below it that surely holds; `low` is 0 where none does.

    >>> held, open, worse = (
    ...     Mean(value=v, low=v - 0.01, high=v + 0.01, count=5) for v in (0.0, 0.015, 0.05))
    >>> print(critical_on_grid(16, [32, 64, 128], [held, open, worse], tolerance=0.02))
    64 [32, 128]

    Args:
        base: B, which holds by definition.
        batch_sizes: rising.
        excess: of each, as a share of the base branch's loss.
        tolerance: above 0.
    """
    pairs = list(zip(batch_sizes, excess, strict=True))
    worse = min((b for b, e in pairs if _low(e) > tolerance), default=math.inf)
    held = [b for b, e in pairs if b < worse and e.value <= tolerance]
    sure = [b for b in held for c, e in pairs if c == b and _high(e) <= tolerance]
    if not sure and math.isinf(worse):
        return NotEnough(
            reason="the branches' losses scatter by more than the tolerance",
            needed="more seeds, a longer run, or a larger tolerance",
        )
    return Range(
        value=float(max(held, default=base)), low=float(max(sure, default=0)), high=float(worse)
    )


def mean_excess(excess: Sequence[float]) -> Mean:
    """A batch at which any seed diverged is worse."""
    if not all(map(math.isfinite, excess)):
        return Mean(value=math.inf, low=math.inf, high=math.inf, count=len(excess))
    return mean_of(excess)


def _low(mean: Mean) -> float:
    return mean.value if mean.low is None else mean.low


def _high(mean: Mean) -> float:
    return mean.value if mean.high is None else mean.high
