"""How fast a run goes and how long it still takes, from when its reports came."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

LEAST_STEPS = 3
"""Fewer say nothing: the first ones are slower than those that follow."""

LEAST_SECONDS = 0.5
"""A rest is not told from less than this."""


class Rate:
    """Amount per second, averaged exponentially over time; changes state.

    >>> rate = Rate(memory=10.0)
    >>> rate.add(100.0, seconds=1.0)
    >>> rate.add(300.0, seconds=1.0)
    >>> 200.0 < rate.value < 210.0
    True

    Args:
        memory: after this many seconds 1 / e of a past second's weight is left.
    """

    def __init__(self, *, memory: float) -> None:
        self.memory = memory
        self._amount = self._seconds = 0.0

    def add(self, amount: float, *, seconds: float) -> None:
        """Adds what was done in the seconds since the last call."""
        keep = math.exp(-seconds / self.memory)
        self._amount = keep * self._amount + amount
        self._seconds = keep * self._seconds + seconds

    @property
    def value(self) -> float:
        """Amount per second; 0 before any time has passed."""
        return self._amount / self._seconds if self._seconds > 0.0 else 0.0


class Pace:
    """The speed of a run as it is watched; changes state with each report.

    Only what is done while it watches counts: the first report, after a run's first step or the
    first one since it was resumed, is where it begins.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._samples, self._fraction = Rate(memory=10.0), Rate(memory=60.0)
        self._last: tuple[float, int, float] | None = None
        self._steps, self._seconds, self._at = 0, 0.0, 0.0

    def see(self, *, samples: int, fraction: float) -> None:
        """Take the run's position after a step."""
        now = self.clock()
        if self._last is not None:
            before, samples_before, fraction_before = self._last
            seconds = now - before
            self._samples.add(samples - samples_before, seconds=seconds)
            self._fraction.add(fraction - fraction_before, seconds=seconds)
            self._steps, self._seconds = self._steps + 1, self._seconds + seconds
        self._last, self._at = (now, samples, fraction), fraction

    @property
    def samples_per_second(self) -> float | None:
        """Over the last ten seconds or so, evaluations included; None in the first steps."""
        known = self._steps >= LEAST_STEPS and self._samples.value > 0.0
        return self._samples.value if known else None

    @property
    def seconds_left(self) -> float | None:
        """At the budget's pace of the last minute or so; None in the first steps, at the end, and
        where the budget does not move."""
        known = self._steps >= LEAST_STEPS and self._seconds >= LEAST_SECONDS and self._at < 1.0
        if not known or not self._fraction.value > 0.0:
            return None
        return (1.0 - self._at) / self._fraction.value
