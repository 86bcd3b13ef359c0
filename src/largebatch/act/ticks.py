"""Multiples of base steps that a run has passed."""

from __future__ import annotations

import math

SLACK = 1e-6
"""Ten steps worth a tenth each make one base step, whatever the rounding of their sum."""


class Ticks:
    """Remembers, for each interval, up to where the run was asked for.

    Mutable: holds one number for each interval.

    Args:
        start: base steps of the run before its first step, or where it was resumed.
    """

    def __init__(self, *, start: float) -> None:
        self._start = start
        self._asked: dict[float, float] = {}

    def passed(self, every: float, *, now: float) -> list[float]:
        """Return the multiples of `every` above the last call's clock, up to `now`.

        >>> ticks = Ticks(start=0.0)
        >>> ticks.passed(10, now=34.5), ticks.passed(10, now=39.0), ticks.passed(10, now=40.0)
        ([10, 20, 30], [], [40])

        Args:
            every: interval in base steps, above 0; a whole number gives whole numbers.
            now: the clock in base steps.

        Raises:
            ValueError: an interval that is not above 0, or not finite.
        """
        if not 0.0 < every < math.inf:
            raise ValueError(
                f"every is a number of base steps above 0; got {every!r}. "
                "for tick in control.ticks(every=10): ..."
            )
        before = self._asked.get(every, self._start)
        self._asked[every] = now
        first, last = (math.floor((clock + SLACK) / every) for clock in (before, now))
        return [count * every for count in range(first + 1, last + 1)]
