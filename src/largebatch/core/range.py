"""A number with the range that it may lie in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number and the ends of its interval.

    >>> print(Range(value=1.0, low=0.5, high=2.0))
    1 [0.5, 2]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"
