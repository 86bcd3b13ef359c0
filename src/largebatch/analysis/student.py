"""The interval of a mean from few runs, by Student's t.

    mean +- t s / sqrt(n),    s the standard deviation over n runs, t the quantile at n - 1 degrees

Student, The Probable Error of a Mean, 1908, Biometrika.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.core.student import t_quantile as t_quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean over runs with its interval.

    Args:
        value: the mean.
        low, high: ends of the interval; None for one run.
        count: runs.
    """

    value: float
    low: float | None
    high: float | None
    count: int


def mean_of(values: Sequence[float], *, level: float = 0.95) -> Mean:
    """The mean of independent values and its t-interval.

    >>> mean = mean_of([1.0, 2.0, 3.0])
    >>> mean.value, round(mean.low, 4), round(mean.high, 4)
    (2.0, -0.4841, 4.4841)

    Args:
        values: at least one.
        level: the probability of covering the true mean of a normal distribution, in (0, 1).
    """
    count = len(values)
    value = math.fsum(values) / count
    if count < 2:
        return Mean(value=value, low=None, high=None, count=count)
    variance = math.fsum((v - value) ** 2 for v in values) / (count - 1)
    half = t_quantile(level, degrees=count - 1) * math.sqrt(variance / count)
    return Mean(value=value, low=value - half, high=value + half, count=count)
