"""Describe a training run, make it, and hold its result."""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from experiments.lab import workloads
from torch import nn
from torch.optim import Optimizer

import largebatch as lb
from largebatch.workbench.workloads import Split, evaluate

RENAMED = {
    "HoldThenDecay(": "After(",
    ", over=1, to_base=False)": ")",
    ", first=0)": ")",
    "backoff=None, paper=": "backoff=0.25, paper=",
    ", backoff_at_high=1.0)": ")",
}
"""Text in the `repr` of a rule today -> the text when the runs were recorded.

The key of a run is a hash of this text. Classes have been renamed since, and got new fields with
default values; with these replacements the recorded runs keep their keys."""


def _recorded_text(run: Run) -> str:
    """Return the text that the key of a run is made of, with the class names of version 0.1."""
    text = repr(run)
    for today, recorded in RENAMED.items():
        text = text.replace(today, recorded)
    return text + "".join(f" [{change}]" for change in run.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """Hold what one kind of run records in addition to the fields of `Result`.

    Args:
        notes: Name -> number.
        trace: Rows of numbers, for example one row per training step.
        whole: Complete answer of a command, encoded by `core.codec`; None if the run calls no
            command.
    """

    notes: dict[str, float] = field(default_factory=dict)
    trace: tuple[tuple[float, ...], ...] = ()
    whole: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Describe a training run; equal descriptions give equal results on one machine.

    Args:
        workload: Name of the workload, as in `lab.workloads`.
        method: Name of the method in tables.
        rule: Rule that decides learning rate and batch size.
        scale: Scale S of the first step: its batch size divided by the base batch size.
        budget: Length of the run.
        seed: Seed of the initial weights and of the order of the samples.
        lr: Base learning rate; None for the base learning rate of the workload.
        micro_batch: Number of samples in one micro-batch; None for the base batch size.
        temporal: If True, gradient noise is measured by `lb.measure.TemporalMoments` from one
            backward pass per step.
        evaluations: Number of points of the validation curve.
        keep_gains: If True, the result holds the gain of each step.
    """

    workload: str
    method: str
    rule: lb.Rule
    scale: int = 1
    budget: lb.Budget
    seed: int = 0
    lr: float | None = None
    micro_batch: int | None = None
    temporal: bool = False
    evaluations: int = 1
    keep_gains: bool = False

    @property
    def key(self) -> str:
        """Return the hash that identifies the run in a record; it depends on every field."""
        return hashlib.sha256(_recorded_text(self).encode()).hexdigest()[:16]

    @property
    def changes(self) -> tuple[str, ...]:
        """Return how the package treats these settings differently from version 0.1.

        The texts are part of the key, so a run that version 0.1 recorded is made again.
        """
        changes = []
        rule = repr(self.rule)
        if "preconditioned_moments" in rule:
            changes.append("the first steps of Adam, which divide nothing, are left out")
        if "AdaScale(" in rule and (self.temporal or self.micro_batch is not None):
            changes.append("the averages' window counts base batches, not parts")
        return tuple(changes)

    @property
    def facts(self) -> dict[str, Any]:
        """Return the fields that the record shows to a human reader together with the key."""
        return {
            "workload": self.workload,
            "method": self.method,
            "scale": self.scale,
            "budget": {k: v for k, v in asdict(self.budget).items() if v is not None},
            "seed": self.seed,
            "lr": self.lr,
        }

    def make(self) -> Result:
        """Train on one thread of this process and return the result.

        A subclass that trains with another library overrides this method.
        """
        return train(self)

    def meter(self, model: nn.Module) -> lb.Meter:
        """Return the meter that measures the gradients of the model."""
        statistics = [lb.measure.TemporalMoments()] if self.temporal else None
        return lb.Meter(model, statistics=statistics)

    def judging(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Return a context in which the model is evaluated.

        An optimizer that evaluates other weights than it trains swaps them in this context.
        """
        return nullcontext()

    def look(self, model: nn.Module) -> tuple[float, ...]:
        """Return the numbers that follow the validation loss in each point of the curve."""
        return ()

    def ends(self, record: lb.MemoryRecord) -> bool:
        """Return whether the run ends before its budget is used up.

        A subclass ends early if the samples that measuring takes are part of the budget.
        """
        return False

    def extra(self, control: lb.Controller, record: lb.MemoryRecord) -> Extra:
        """Return what the run records in addition to the fields of `Result`."""
        return Extra()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Hold the result of a run.

    Args:
        steps, samples, base_steps: Number of optimizer steps, samples and base steps at the end.
        mean_gain: Mean gain: base steps divided by optimizer steps.
        mean_multiplier: Mean factor on the base learning rate.
        diverged: True if the loss or the gradient was not finite ten times in a row, or if the
            last validation loss is not finite.
        train, validation, test: Metric -> mean over the split; empty for a diverged run.
        curve: Points (steps, samples, base steps, validation loss, then the numbers of
            `Run.look`).
        gains: Gain of each step, rounded to six digits; empty unless `Run.keep_gains` is set.
        forecast: Rows (scale, mean gain, lower bound, upper bound); empty unless the run is a
            probe.
        extra: What the run records in addition.
        seconds: Wall-clock seconds of training and evaluation on one thread. Other processes may
            have used the machine at the same time.
    """

    steps: int
    samples: int
    base_steps: float
    mean_gain: float
    mean_multiplier: float
    diverged: bool
    train: dict[str, float]
    validation: dict[str, float]
    test: dict[str, float]
    curve: tuple[tuple[float, ...], ...] = ()
    gains: tuple[float, ...] = ()
    forecast: tuple[tuple[float, ...], ...] = ()
    extra: Extra = field(default_factory=Extra)
    seconds: float = 0.0


def train(run: Run, *, spoiled: int | None = None) -> Result:
    """Train with `lb.Controller` and return the result.

    Args:
        run: Description of the run.
        spoiled: Index of the step whose loss is made infinite; None for no such step.
    """
    torch.set_num_threads(1)
    began = time.perf_counter()
    workload, data = workloads.workload(run.workload), workloads.data(run.workload)
    torch.manual_seed(run.seed)
    model, optimizer = workload.fresh(seed=run.seed, lr=run.lr)
    base = workload.base_batch_size
    micro = run.scale * base if run.temporal else run.micro_batch or base
    record = lb.MemoryRecord()
    control = lb.Controller(
        model,
        optimizer,
        run.rule,
        lb.BatchLoader(
            data.train, batch_size=run.scale * base, max_micro_batch_size=micro, seed=run.seed
        ),
        base_batch_size=base,
        meter=run.meter(model),
        record=record,
    )
    amount = {run.budget.unit: run.budget.amount}
    every = {run.budget.unit: run.budget.amount / run.evaluations}
    curve: list[tuple[float, ...]] = []
    diverged = False

    def judge(split: Split) -> dict[str, float]:
        with run.judging(optimizer):
            return evaluate(model, workload, split)

    def point() -> dict[str, float]:
        found = judge(data.validation)
        clocks = (control.optimizer_steps, control.samples, control.base_steps)
        curve.append((*clocks, found["loss"], *run.look(model)))
        return found

    try:
        for number, batch in enumerate(control.steps(**amount)):
            for micro_batch in batch:
                loss = workload.loss(model, micro_batch)
                control.backward(loss * math.inf if number == spoiled else loss)
            control.step()
            if run.ends(record):
                break
            if run.evaluations > 1 and not control.finished and control.every(**every):
                point()
    except lb.errors.NotFinite:
        diverged = True
    validation = {} if diverged else point()
    steps = max(control.optimizer_steps, 1)
    multipliers = [decision.lr_multiplier for _, decision in record.steps]
    return Result(
        steps=control.optimizer_steps,
        samples=control.samples,
        base_steps=control.base_steps,
        mean_gain=control.base_steps / steps,
        mean_multiplier=math.fsum(multipliers) / max(len(multipliers), 1),
        diverged=diverged or not math.isfinite(validation["loss"]),
        train={} if diverged else judge(data.seen),
        validation=validation,
        test={} if diverged else judge(data.test),
        curve=tuple(curve),
        gains=tuple(float(f"{d.base_steps:.6g}") for _, d in record.steps)
        if run.keep_gains
        else (),
        extra=run.extra(control, record),
        seconds=time.perf_counter() - began,
    )
