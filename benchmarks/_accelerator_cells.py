"""Measure the cells of `accelerator.py` within a time limit: one candidate against torch alone."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from _accelerator_loops import CANDIDATES, Loop, Setting, hand_loop
from _accelerator_results import Result
from _operations import Operations, count_operations
from _timing import Paired, interleave

LEAST_ROUNDS = 6
"""With fewer rounds, order statistics give no 95 % interval of the median."""

WARM_UP = 3
"""Steps that each loop takes before anything is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Describe how long each cell is measured.

    Args:
        rounds: Largest number of rounds of a cell.
        round_seconds: Smallest duration of one loop in a round, in seconds.
        most_steps: Largest number of steps of one loop in a round.
    """

    rounds: int
    round_seconds: float
    most_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Describe one comparison: a candidate, and the setting in which the candidate runs."""

    setting: Setting
    candidate: str

    @property
    def compiled(self) -> bool:
        """Return whether the model is compiled."""
        return self.setting.backend is not None

    @property
    def name(self) -> str:
        """Return the cell's name, such as "GPT compiled attach"."""
        mode = "compiled" if self.compiled else "eager"
        return f"{self.setting.workload.name} {mode} {self.candidate}"


class OutOfTimeError(Exception):
    """Report that a cell cannot be measured in the remaining time."""


class NotSupportedError(Exception):
    """Report with the library's message that a loop is not supported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Hold a loop after its warm-up, and its peak memory on the device in one step."""

    loop: Loop
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Hold two copies of the loop with torch alone, for all cells of one setting."""

    bare: Ready
    null: Ready
    steps: int
    operations: Operations


def allocated(device: torch.device) -> int:
    """Return the number of bytes of all tensors on the device, or 0 on the CPU."""
    return 0 if device.type == "cpu" else torch.cuda.memory_allocated(device)


def warmed(build: Callable[[Setting], Loop], setting: Setting) -> Ready:
    """Build a loop, run its warm-up steps, and measure its peak memory in one more step.

    Raises:
        NotSupportedError: The loop cannot be built.
    """
    gc.collect()  # Otherwise the memory of an earlier loop could be counted in `before`.
    device, before = setting.device, allocated(setting.device)
    try:
        loop = build(setting)
    except ValueError as error:
        raise NotSupportedError(str(error)) from error
    loop(WARM_UP)
    if device.type == "cpu":
        return Ready(loop=loop, peak_bytes=None)
    torch.cuda.reset_peak_memory_stats(device)
    loop(1)
    return Ready(loop=loop, peak_bytes=torch.cuda.max_memory_allocated(device) - before)


def baseline_of(setting: Setting, plan: Plan) -> Baseline:
    """Build two loops with torch alone, choose the steps per round and count the operations."""
    bare, null = warmed(hand_loop, setting), warmed(hand_loop, setting)
    began = time.perf_counter()
    bare.loop(1)
    steps = math.ceil(plan.round_seconds / (time.perf_counter() - began))
    return Baseline(
        bare=bare,
        null=null,
        steps=min(max(steps, 1), plan.most_steps),
        operations=count_operations(partial(bare.loop, 1), device=setting.device.type),
    )


def timed(candidate: Loop, base: Baseline, plan: Plan, *, share: float, left: float) -> Paired:
    """Time a candidate in as many rounds as fit into `share` seconds, at least `LEAST_ROUNDS`.

    Raises:
        OutOfTimeError: `LEAST_ROUNDS` rounds take longer than `left` seconds.
    """
    loops = {"bare": base.bare.loop, "null": base.null.loop, "candidate": candidate}
    runs = {name: partial(loop, base.steps) for name, loop in loops.items()}
    began = time.perf_counter()
    interleave(runs, rounds=1, warmup=1)
    first = time.perf_counter() - began
    round_seconds = first / 2
    if LEAST_ROUNDS * round_seconds > left - first:
        raise OutOfTimeError(
            f"{LEAST_ROUNDS} rounds take about {LEAST_ROUNDS * round_seconds:.1f} s, but only "
            f"{max(left - first, 0):.1f} s are left"
        )
    fitting = math.floor((share - first) / round_seconds)
    return interleave(runs, rounds=min(plan.rounds, max(fitting, LEAST_ROUNDS)), warmup=0)


def summary(cell: Cell, paired: Paired, base: Baseline, candidate: Ready) -> Result:
    """Return the result of a measured cell."""
    device = cell.setting.device.type
    clock = "cpu" if device == "cpu" else "wall"
    operations = count_operations(partial(candidate.loop, 1), device=device)
    return Result(
        cell=cell.name,
        status="measured",
        clock=clock,
        ratio=paired.ratio("candidate", to="bare", clock=clock),
        null=paired.ratio("null", to="bare", clock=clock),
        cpu_ratio=paired.ratio("candidate", to="bare", clock="cpu"),
        cpu_null=paired.ratio("null", to="bare", clock="cpu"),
        bare_us=paired.each("bare", per=base.steps, clock=clock),
        added_us=paired.added("candidate", to="bare", per=base.steps, clock=clock),
        rounds=len(paired.wall["bare"]),
        steps_per_round=base.steps,
        bare_operations=base.operations,
        operations=operations,
        bare_peak_bytes=base.bare.peak_bytes,
        peak_bytes=candidate.peak_bytes,
    )


class Bench:
    """Measure cells one after the other within a time limit.

    Mutable: holds the baseline of the current setting and the duration of earlier set-ups.

    Args:
        plan: Durations and numbers of rounds of each cell.
        seconds: Time limit for all cells together, in seconds.
    """

    def __init__(self, plan: Plan, *, seconds: float) -> None:
        self._plan = plan
        self._end = time.perf_counter() + seconds
        self._of: Setting | None = None
        self._baseline: Baseline | None = None
        self._set_up_seconds: dict[tuple[bool, bool], float] = {}  # (compiled, first of a setting)

    def results(self, cells: list[Cell]) -> Iterator[Result]:
        """Yield the result of each cell as soon as the cell ends."""
        for at, cell in enumerate(cells):
            began = time.perf_counter()
            result = self._result(cell, cells_left=len(cells) - at)
            seconds = time.perf_counter() - began
            yield replace(result, seconds=round(seconds, 3), load=os.getloadavg()[0])

    def _result(self, cell: Cell, *, cells_left: int) -> Result:
        try:
            return self._measured(cell, share=self._left() / cells_left)
        except NotSupportedError as error:
            return Result(cell=cell.name, status="not supported", reason=str(error))
        except OutOfTimeError as error:
            return Result(cell=cell.name, status="skipped", reason=str(error))
        except torch.OutOfMemoryError as error:
            return Result(cell=cell.name, status="out of memory", reason=str(error))
        except Exception as error:  # The other cells can still be measured.
            reason = f"{type(error).__name__}: {error}"
            return Result(cell=cell.name, status="failed", reason=reason)

    def _measured(self, cell: Cell, *, share: float) -> Result:
        began, left = time.perf_counter(), self._left()
        first = self._of != cell.setting
        eager = self._set_up_seconds.get((False, first), 0.0)  # Compiling takes longer than this.
        kind = cell.compiled, first
        expected = self._set_up_seconds.get(kind, eager)
        if left <= expected:
            raise OutOfTimeError(
                f"the set-up takes about {expected:.1f} s, but only {max(left, 0):.1f} s are left"
            )
        self._enter(cell.setting)
        candidate = warmed(CANDIDATES[cell.candidate], cell.setting)
        if self._baseline is None:
            self._baseline = baseline_of(cell.setting, self._plan)
        took = time.perf_counter() - began
        self._set_up_seconds[kind] = max(expected, took)
        share, left = share - took, self._left()
        paired = timed(candidate.loop, self._baseline, self._plan, share=share, left=left)
        return summary(cell, paired, self._baseline, candidate)

    def _left(self) -> float:
        return self._end - time.perf_counter()

    def _enter(self, setting: Setting) -> None:
        """Remove the baseline and the compiled graphs of the previous setting."""
        if self._of == setting:
            return
        self._of, self._baseline = setting, None
        torch.compiler.reset()
        gc.collect()
        if setting.device.type != "cpu":
            torch.cuda.empty_cache()
