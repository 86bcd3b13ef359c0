"""Compute the confidence interval of a mean from few runs, by Student's t.

    mean +- t * s / sqrt(n)

The symbol s is the standard deviation over n runs, and t is the quantile at n - 1 degrees of
freedom.

Reference: Student, The Probable Error of a Mean, 1908, Biometrika.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.core.student import t_quantile as t_quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Hold a mean over runs with its confidence interval.

    Args:
        value: Mean over the runs.
        low: Lower bound of the interval, or None for a single run.
        high: Upper bound of the interval, or None for a single run.
        count: Number of runs.
    """

    value: float
    low: float | None
    high: float | None
    count: int


def mean_of(values: Sequence[float], *, level: float = 0.95) -> Mean:
    """Return the mean of independent values and its t-interval.

    >>> mean = mean_of([1.0, 2.0, 3.0])
    >>> mean.value, round(mean.low, 4), round(mean.high, 4)
    (2.0, -0.4841, 4.4841)

    Args:
        values: Values of the runs, at least one.
        level: Probability in (0, 1) that the interval contains the true mean, for a normal
            distribution.
    """
    count = len(values)
    value = math.fsum(values) / count
    if count < 2:
        return Mean(value=value, low=None, high=None, count=count)
    variance = math.fsum((v - value) ** 2 for v in values) / (count - 1)
    half = t_quantile(level, degrees=count - 1) * math.sqrt(variance / count)
    return Mean(value=value, low=value - half, high=value + half, count=count)
