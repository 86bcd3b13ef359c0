"""Time candidates and a baseline in rounds, so that their times can be compared in pairs.

Every round runs each candidate once, in an order that rotates from round to round. The speed of a
machine drifts, so only the ratio of two times of the same round is used. A table shows the median
ratio with its 95 % confidence interval from the order statistics. The row `null` compares the
baseline with a second copy of itself. A ratio within the interval of `null` shows no difference.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Run = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Interval:
    """Hold a median with its 95 % confidence interval."""

    median: float
    low: float
    high: float

    def shown(self, digits: int = 3) -> str:
        """Return the interval as text, such as "1.021 [1.010, 1.032]"."""
        median, low, high = (f"{x:.{digits}f}" for x in (self.median, self.low, self.high))
        return f"{median} [{low}, {high}]"


def interval_of_median(values: list[float]) -> Interval:
    """Return the median and its 95 % confidence interval from the order statistics."""
    ordered = sorted(values)
    n = len(ordered)
    half = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return Interval(statistics.median(ordered), ordered[low], ordered[high])


@dataclass(frozen=True, slots=True)
class Paired:
    """Hold the wall time and the CPU time of every candidate in every round, in seconds."""

    wall: Mapping[str, list[float]]
    cpu: Mapping[str, list[float]]

    def ratio(self, name: str, *, to: str, clock: str = "wall") -> Interval:
        """Return the median ratio of the times of two candidates in the same round."""
        times = self.wall if clock == "wall" else self.cpu
        return interval_of_median([a / b for a, b in zip(times[name], times[to], strict=True)])

    def added(self, name: str, *, to: str, per: int, clock: str = "cpu") -> Interval:
        """Return the additional microseconds of a candidate per repetition.

        Args:
            name: Name of the candidate.
            to: Name of the candidate that it is compared with.
            per: Number of repetitions in one run.
            clock: Kind of time, "wall" or "cpu".
        """
        times = self.wall if clock == "wall" else self.cpu
        pairs = zip(times[name], times[to], strict=True)
        return interval_of_median([(a - b) / per * 1e6 for a, b in pairs])

    def each(self, name: str, *, per: int, clock: str = "wall") -> Interval:
        """Return the microseconds of one repetition; one run has `per` repetitions."""
        times = self.wall if clock == "wall" else self.cpu
        return interval_of_median([seconds / per * 1e6 for seconds in times[name]])

    def table(self, title: str, *, to: str, per: int, unit: str) -> str:
        """Return a table with a row for each candidate, compared with the baseline `to`.

        Args:
            title: Title of the table.
            to: Name of the baseline.
            per: Number of units in one run.
            unit: Name of a unit, such as "step".
        """
        base = self.each(to, per=per).shown(1)
        columns = (f"wall / {to}", f"CPU / {to}", f"added CPU us per {unit}")
        lines = [
            f"\n{title}: {to} {base} us per {unit}, load {os.getloadavg()[0]:.1f}",
            f"{'':26}" + "".join(f"{column:>30}" for column in columns),
        ]
        for name in [name for name in self.wall if name != to]:
            cells = (
                self.ratio(name, to=to).shown(),
                self.ratio(name, to=to, clock="cpu").shown(),
                self.added(name, to=to, per=per).shown(1),
            )
            lines.append(f"{name:26}" + "".join(f"{cell:>30}" for cell in cells))
        return "\n".join(lines)


def interleave(candidates: Mapping[str, Run], *, rounds: int, warmup: int = 3) -> Paired:
    """Time every candidate once per round, in an order that rotates from round to round."""
    names = list(candidates)
    for _ in range(warmup):
        for run in candidates.values():
            run()
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    for at in range(rounds):
        for name in names[at % len(names) :] + names[: at % len(names)]:
            before, before_cpu = time.perf_counter(), time.process_time()
            candidates[name]()
            wall[name].append(time.perf_counter() - before)
            cpu[name].append(time.process_time() - before_cpu)
        gc.collect()
    gc.enable()
    return Paired(wall, cpu)
