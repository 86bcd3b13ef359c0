"""Estimate the speed of a run and its remaining time from the times of its progress reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

LEAST_STEPS = 3
"""Number of reports before a speed is shown, because the first steps of a run are slower."""

LEAST_SECONDS = 0.5
"""Seconds of observation before a remaining time is shown."""


class Rate:
    """Compute an amount per second, averaged exponentially over time. Mutable.

    >>> rate = Rate(memory=10.0)
    >>> rate.add(100.0, seconds=1.0)
    >>> rate.add(300.0, seconds=1.0)
    >>> 200.0 < rate.value < 210.0
    True

    Args:
        memory: Time in seconds after which the weight of a past second has fallen to 1 / e.
    """

    def __init__(self, *, memory: float) -> None:
        self.memory = memory
        self._amount = self._seconds = 0.0

    def add(self, amount: float, *, seconds: float) -> None:
        """Add the amount that was done in the given number of seconds."""
        keep = math.exp(-seconds / self.memory)
        self._amount = keep * self._amount + amount
        self._seconds = keep * self._seconds + seconds

    @property
    def value(self) -> float:
        """Return the amount per second, or 0 if no time has passed."""
        return self._amount / self._seconds if self._seconds > 0.0 else 0.0


class Pace:
    """Estimate the speed of a run from its progress reports. Mutable.

    The first report only sets the starting point, so the time before the first report and the work
    before a resume do not count.

    Args:
        clock: Function that returns the current time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._samples, self._fraction = Rate(memory=10.0), Rate(memory=60.0)
        self._last: tuple[float, int, float] | None = None
        self._steps, self._seconds, self._at = 0, 0.0, 0.0

    def see(self, *, samples: int, fraction: float) -> None:
        """Add the position of the run after a training step.

        Args:
            samples: Number of samples used so far.
            fraction: Fraction of the budget used so far, 0 to 1.
        """
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
        """Return the samples per second of about the last ten seconds, or None in the first steps.

        The time for evaluations is included.
        """
        known = self._steps >= LEAST_STEPS and self._samples.value > 0.0
        return self._samples.value if known else None

    @property
    def seconds_left(self) -> float | None:
        """Return the remaining seconds at the speed of about the last minute.

        The result is None in the first steps, at the end, and if the fraction does not advance.
        """
        known = self._steps >= LEAST_STEPS and self._seconds >= LEAST_SECONDS and self._at < 1.0
        if not known or not self._fraction.value > 0.0:
            return None
        return (1.0 - self._at) / self._fraction.value
