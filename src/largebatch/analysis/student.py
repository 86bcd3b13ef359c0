"""Student's t: the interval of a mean from few runs.

    mean +- t s / sqrt(n),    s the standard deviation over n runs, t the quantile at n - 1 degrees

Student, The Probable Error of a Mean, 1908, Biometrika. The probability is the finite sum of
Abramowitz, Stegun, Handbook of Mathematical Functions, 1964, 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


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


def t_quantile(level: float, *, degrees: int) -> float:
    """The t that |T| stays below with probability `level`.

    >>> round(t_quantile(0.95, degrees=4), 4)
    2.7764

    Args:
        level: in (0, 1).
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(high)


def _inside(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(angle))."""
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = total = (cosine if odd else 1.0) if degrees > 1 else 0.0
    for k in range(1 + odd, degrees - 1, 2):
        term *= cosine**2 * k / (k + 1)
        total += term
    return (angle + sine * total) * 2 / math.pi if odd else sine * total
