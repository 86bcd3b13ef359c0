"""Build a table of stages that is long enough for every data set.

A measurement ends each stage, so the number of stages is not known in advance. `AdaptiveGrowth` and
`FullGradientGrowth` take the table that `covering_stages` returns.
"""

from __future__ import annotations

import math

from largebatch.rules.stages import Stages, growing_stages

COVERED = 2.0**20
"""Smallest ratio of the last batch size to the first. No real data set has more than COVERED times
as many samples as the first batch."""

FEWEST, MOST_STAGES = 21, 10_000
"""Smallest and largest number of stages in a table."""

LARGEST_RATE = 1e300
"""Largest factor on the learning rate in a table; the smallest factor is 1 / LARGEST_RATE."""


def covering_stages(*, delta: float, gamma: float = 1.0) -> Stages:
    """Return enough growing stages for the last batch to be larger than any data set.

    The last batch is at least COVERED times the first one, even if the growth per stage is small.
    If delta is at most 1 or above 2, there are FEWEST stages. The table ends before the learning
    rate exceeds the range of floating-point numbers.

    >>> len(covering_stages(delta=2.0)), len(covering_stages(delta=1.05))
    (21, 286)

    Args:
        delta: Factor on the batch size from stage to stage, above 0.
        gamma: Factor on the learning rate from stage to stage, above 0.

    Raises:
        ValueError: If a factor is not above 0, or if delta is so close to 1 that more than
            MOST_STAGES stages are necessary.

    Reference: Umeda, Iiduka, 2024, arXiv 2409.08770; Umeda, Iiduka, 2025, arXiv 2508.05297.
    """
    count = FEWEST
    if 1.0 < delta < math.inf:
        count = max(math.ceil(math.log(COVERED) / math.log(delta) - 1e-9) + 1, FEWEST)
    if count > MOST_STAGES:
        least = COVERED ** (1.0 / (MOST_STAGES - 1))
        raise ValueError(
            f"delta={delta!r} was given, but {count:,} stages would be necessary to reach "
            f"{COVERED:,.0f} times the first batch size, and at most {MOST_STAGES:,} are allowed. "
            f"Use a larger factor: delta={math.ceil(1e4 * least) / 1e4}"
        )
    if 0.0 < gamma < math.inf and gamma != 1.0:
        count = min(count, math.floor(math.log(LARGEST_RATE) / abs(math.log(gamma))) + 1)
    return growing_stages(count, delta=delta, gamma=gamma)
