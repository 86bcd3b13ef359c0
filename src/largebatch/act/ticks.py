"""Compute the multiples of an interval in base steps that a run has passed."""

from __future__ import annotations

import math

SLACK = 1e-6
"""Slack in base steps, so that ten steps of 0.1 base steps count as one base step despite rounding.
"""


class Ticks:
    """Remember, for each interval, the number of base steps at the last call of `passed`.

    This class is mutable: it holds one number per interval.

    Args:
        start: Value of `base_steps` before the first step of the run, or when the run was resumed.
    """

    def __init__(self, *, start: float) -> None:
        self._start = start
        self._asked: dict[float, float] = {}

    def passed(self, every: float, *, now: float) -> list[float]:
        """Return the multiples of `every` above the value of `now` at the last call, up to the new
        `now`.

        >>> ticks = Ticks(start=0.0)
        >>> ticks.passed(10, now=34.5), ticks.passed(10, now=39.0), ticks.passed(10, now=40.0)
        ([10, 20, 30], [], [40])

        Args:
            every: Interval in base steps, above 0. If `every` is a whole number, the multiples are
                whole numbers.
            now: Current value of `base_steps`.

        Raises:
            ValueError: The interval is not above 0, or it is not finite.
        """
        if not 0.0 < every < math.inf:
            raise ValueError(
                f"every={every!r} was given, but it must be a number of base steps above 0. For "
                "example: for tick in control.ticks(every=10): ..."
            )
        before = self._asked.get(every, self._start)
        self._asked[every] = now
        first, last = (math.floor((clock + SLACK) / every) for clock in (before, now))
        return [count * every for count in range(first + 1, last + 1)]
