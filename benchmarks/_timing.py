"""Paired timings: every round runs each candidate once, in rotating order, beside the baseline.

The machine's speed drifts, so only ratios within a round count. Printed are the median of the
rounds' ratios and its 95 % interval from the order statistics; `null` is the baseline against a
second copy of itself.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Run = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of paired ratios with its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def median_interval(values: list[float]) -> Ratio:
    """The median and the order statistics that hold the true one with 95 %."""
    ordered = sorted(values)
    n = len(ordered)
    half = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return Ratio(statistics.median(ordered), ordered[low], ordered[high])


@dataclass(frozen=True, slots=True)
class Paired:
    """Wall and CPU seconds of every candidate in every round."""

    wall: Mapping[str, list[float]]
    cpu: Mapping[str, list[float]]

    def ratio(self, name: str, *, to: str, clock: str = "wall") -> Ratio:
        """Paired ratio of one candidate to another."""
        times = self.wall if clock == "wall" else self.cpu
        return median_interval([a / b for a, b in zip(times[name], times[to], strict=True)])

    def added(self, name: str, *, to: str, per: int) -> Ratio:
        """Paired CPU microseconds that a candidate adds, per one of `per` repetitions."""
        pairs = zip(self.cpu[name], self.cpu[to], strict=True)
        return median_interval([(a - b) / per * 1e6 for a, b in pairs])


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
