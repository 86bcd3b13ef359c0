"""Define a number with its confidence interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Hold a number and its confidence interval.

    >>> print(Range(value=1.0, low=0.5, high=2.0))
    1 [0.5, 2]

    Args:
        value: Estimated number.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"
