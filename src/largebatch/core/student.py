"""Compute quantiles of Student's t distribution.

Reference: Student, The Probable Error of a Mean, 1908, Biometrika. The probability is the finite
sum of Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import math
from functools import cache


@cache
def t_quantile(level: float, *, degrees: int) -> float:
    """Return the number t for which Student's T satisfies |T| < t with probability `level`.

    >>> round(t_quantile(0.95, degrees=4), 4)
    2.7764

    Args:
        level: Probability, in (0, 1).
        degrees: Degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(high)


def _inside(angle: float, degrees: int) -> float:
    """Return the probability that |T| < sqrt(degrees) tan(angle)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = total = (cosine if odd else 1.0) if degrees > 1 else 0.0
    for k in range(1 + odd, degrees - 1, 2):
        term *= cosine**2 * k / (k + 1)
        total += term
    return (angle + sine * total) * 2 / math.pi if odd else sine * total
