"""Paired timings: every round runs each candidate once, in rotating order, beside the baseline.

The machine's speed drifts, so only ratios within a round count. A table shows the median of the
rounds' ratios with its 95 % interval from the order statistics; its `null` is the baseline against
a second copy of itself, so what lies within its interval is no difference.
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
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    def shown(self, digits: int = 3) -> str:
        """As in "1.021 [1.010, 1.032]"."""
        median, low, high = (f"{x:.{digits}f}" for x in (self.median, self.low, self.high))
        return f"{median} [{low}, {high}]"


def interval_of_median(values: list[float]) -> Interval:
    """The median and the order statistics that hold the true one with 95 %."""
    ordered = sorted(values)
    n = len(ordered)
    half = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return Interval(statistics.median(ordered), ordered[low], ordered[high])


@dataclass(frozen=True, slots=True)
class Paired:
    """Wall and CPU seconds of every candidate in every round."""

    wall: Mapping[str, list[float]]
    cpu: Mapping[str, list[float]]

    def ratio(self, name: str, *, to: str, clock: str = "wall") -> Interval:
        """Paired ratio of one candidate to another."""
        times = self.wall if clock == "wall" else self.cpu
        return interval_of_median([a / b for a, b in zip(times[name], times[to], strict=True)])

    def added(self, name: str, *, to: str, per: int, clock: str = "cpu") -> Interval:
        """Paired microseconds that a candidate adds, per one of `per` repetitions."""
        times = self.wall if clock == "wall" else self.cpu
        pairs = zip(times[name], times[to], strict=True)
        return interval_of_median([(a - b) / per * 1e6 for a, b in pairs])

    def each(self, name: str, *, per: int, clock: str = "wall") -> Interval:
        """Microseconds of one of `per` repetitions."""
        times = self.wall if clock == "wall" else self.cpu
        return interval_of_median([seconds / per * 1e6 for seconds in times[name]])

    def table(self, title: str, *, to: str, per: int, unit: str) -> str:
        """A line for each candidate beside the baseline `to`, in which one run is `per` units."""
        base = self.each(to, per=per).shown(1)
        columns = (f"wall / {to}", f"CPU / {to}", f"added CPU us a {unit}")
        lines = [
            f"\n{title}: {to} {base} us a {unit}, load {os.getloadavg()[0]:.1f}",
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
    """Times every candidate once a round, in an order that rotates from round to round."""
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
