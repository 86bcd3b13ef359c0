"""The stages of a trigger: so many that no data set has a batch behind the last one.

What ends a stage is a measurement, so nobody knows how many there will be. `AdaptiveGrowth` and
`FullGradientGrowth` take such a table.
"""

from __future__ import annotations

import math

from largebatch.rules.stages import Stages, growing_stages

COVERED = 2.0**20
"""The least growth of the batch over the stages of a trigger; no data set is so much larger than
the first batch."""

FEWEST, MOST_STAGES = 21, 10_000
"""Stages of a trigger."""

LARGEST_RATE = 1e300
"""The largest factor on the rate in a table, and one over the smallest."""


def covering_stages(*, delta: float, gamma: float = 1.0) -> Stages:
    """Stages as in `growing_stages`, so many that no data set has a batch behind the last one.

    The last batch is at least COVERED times the first one, however small the growth is. With a
    delta of at most 1, which never comes there, and with one above 2 there are FEWEST stages. They
    end where the rate leaves the range of numbers.

    >>> len(covering_stages(delta=2.0)), len(covering_stages(delta=1.05))
    (21, 286)

    Args:
        delta, gamma: above 0.

    Raises:
        ValueError: a factor that is not above 0, or a delta so near to 1 that it takes more than
            MOST_STAGES stages.

    Reference: Umeda, Iiduka, 2024, arXiv 2409.08770; 2025, arXiv 2508.05297.
    """
    count = FEWEST
    if 1.0 < delta < math.inf:
        count = max(math.ceil(math.log(COVERED) / math.log(delta) - 1e-9) + 1, FEWEST)
    if count > MOST_STAGES:
        least = COVERED ** (1.0 / (MOST_STAGES - 1))
        raise ValueError(
            f"Stages of delta={delta!r} come to {COVERED:,.0f} times the first batch after "
            f"{count:,} of them. Take larger steps, from delta={math.ceil(1e4 * least) / 1e4} on."
        )
    if 0.0 < gamma < math.inf and gamma != 1.0:
        count = min(count, math.floor(math.log(LARGEST_RATE) / abs(math.log(gamma))) + 1)
    return growing_stages(count, delta=delta, gamma=gamma)
