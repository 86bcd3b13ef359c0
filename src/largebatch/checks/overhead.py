"""Time the overhead of measuring: compare a plain loop, the same loop again, and a measured loop.

The three loops take turns on one copy of the model. The learning rate of all three loops is 0, so
the weights do not change. Only the ratios within one round count, because the machine's speed
drifts between rounds.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.act.attached import Attached
from largebatch.checks.checked_run import Loss
from largebatch.checks.finding import Finding
from largebatch.measure.meter import Meter
from largebatch.measure.observer import Observer
from largebatch.measure.parameters import replica
from largebatch.rules import Observe

PARTS = 4
"""Largest number of micro-batches in a timed step."""

LEAST, MOST = 5, 40
"""Smallest and largest number of rounds."""

RUN_SECONDS = 0.01
"""Shortest duration of one timed run, in seconds."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Hold the median of the rounds' ratios, and the 95 % confidence interval of the median from
    order statistics.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        """Return the median and the interval of the given ratios, one per round."""
        ordered, n = sorted(values), len(values)
        half = 0.98 * math.sqrt(n)
        low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
        return cls(statistics.median(ordered), ordered[low], ordered[high])

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


SAMPLES = 10**6
"""Number of samples that each timed micro-batch reports; the overhead does not depend on it."""


class Timed:
    """Hold the timed loops over a copy of a run.

    This class is mutable: it trains the copy, at a learning rate of 0.

    Args:
        model: Copy of the model.
        optimizer: Copy of the optimizer.
        loss: Loss function of the user.
        micro_batches: Micro-batches of every step.
        statistics: Names of the statistics to measure.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Loss,
        micro_batches: Sequence[Any],
        *,
        statistics: tuple[str, ...],
    ) -> None:
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.micro_batches, self.statistics = micro_batches, statistics
        self._replica = replica(model)
        self._observer: Observer | None = None
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].zero_()
            else:
                group["lr"] = 0.0

    def bare(self, steps: int) -> float:
        """Return the seconds that `steps` steps take without measuring."""
        began = self._clock()
        for _ in range(steps):
            self._step()
        return self._clock() - began

    def watched(self, steps: int) -> float:
        """Return the seconds that `steps` steps take while the statistics are measured in each
        step.
        """
        parts = len(self.micro_batches)
        observer = Observer(Meter(self.model), batch_size=parts * SAMPLES, micro_batches=parts)
        rule = Observe(statistics=self.statistics)
        with Attached(self.optimizer, rule, observer, base_batch_size=observer.batch_size):
            self._observer = observer
            try:
                return self.bare(steps)
            finally:
                self._observer = None

    def _step(self) -> None:
        last = len(self.micro_batches) - 1
        for at, micro_batch in enumerate(self.micro_batches):
            if self._observer is not None:
                self._observer.size(SAMPLES)
            silent = self._replica is not None and at < last
            with self._replica.no_sync() if silent else nullcontext():  # type: ignore[union-attr]
                (self.loss(self.model, micro_batch) / len(self.micro_batches)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU.

        On the CPU, only the processor time of this process counts, because other programs on the
        machine change it less than the elapsed time.
        """
        return next(self.model.parameters()).device.type == "cpu"

    def _clock(self) -> float:
        if self.on_cpu:
            return time.process_time()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def check_overhead(
    timed: Timed, *, seconds: float, agree: Callable[[float], float]
) -> list[Finding]:
    """Compare the plain loop with the measured loop, and the plain loop with itself, in alternating
    rounds.

    Args:
        timed: Loops to time.
        seconds: Approximate total time in seconds; at least LEAST rounds run in any case.
        agree: Function that returns the largest of all ranks' numbers.
    """
    timed.bare(1)
    timed.watched(1)
    one = agree(timed.bare(3) / 3)
    if one * 3 * LEAST > 10 * seconds:
        seen = (
            f"The overhead of measuring was not timed: one step takes {one:.3g} s, which is "
            f"too long for a limit of {seconds:g} s."
        )
        return [Finding(name="cost of measuring", level="ok", seen=seen)]
    steps = max(math.ceil(RUN_SECONDS / one), 1)
    rounds = min(max(round(seconds / (3 * steps * one)), LEAST), MOST)
    runs: dict[str, Callable[[], float]] = {
        "bare": partial(timed.bare, steps),
        "null": partial(timed.bare, steps),
        "watched": partial(timed.watched, steps),
    }
    ratios = _interleaved(runs, rounds=rounds)
    cost, null = Ratio.of(ratios["watched"]), Ratio.of(ratios["null"])
    seen = (
        f"A loop that measures every step takes {cost} times the "
        f"{'processor time' if timed.on_cpu else 'time'} of the plain loop. For comparison, the "
        f"plain loop timed twice gives {null} ({rounds} rounds; one step of "
        f"{len(timed.micro_batches)} micro-batches takes {one * 1e3:.3g} ms)."
    )
    if cost.low < max(1.1, null.high):
        return [Finding(name="cost of measuring", level="ok", seen=seen)]
    return [
        Finding(
            name="cost of measuring",
            level="note",
            seen=seen,
            why=(
                "The overhead is relatively large because one micro-batch needs little computation."
            ),
            remedy="Measure only some steps, lb.Every(rule, steps=10), or use larger "
            "micro-batches, max_micro_batch_size=256.",
        )
    ]


def _interleaved(runs: dict[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Return each loop's time relative to the plain loop, round by round, in a rotating order."""
    names = list(runs)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for at in range(rounds):
            turn = names[at % len(names) :] + names[: at % len(names)]
            times = {name: runs[name]() for name in turn}
            for name in names:
                ratios[name].append(times[name] / times["bare"])
    finally:
        if collecting:
            gc.enable()
    return ratios
