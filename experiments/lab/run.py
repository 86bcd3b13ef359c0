"""One run: what it is, and what came of it."""

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
"""Text of a rule today -> the text under which recorded runs have it, before a class was renamed or
got a field, which has its default: a run's key follows its text."""


def _recorded_text(run: Run) -> str:
    """Return the text of a run with the names of version 0.1, in which its key was made."""
    text = repr(run)
    for today, recorded in RENAMED.items():
        text = text.replace(today, recorded)
    return text + "".join(f" [{change}]" for change in run.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a kind of run tells besides.

    Args:
        notes: numbers by name.
        trace: a row a step.
        whole: what a command found, in the plain form of `core.codec`: findings with reasons and
            open ends are no rows of numbers. None where there is none.
    """

    notes: dict[str, float] = field(default_factory=dict)
    trace: tuple[tuple[float, ...], ...] = ()
    whole: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run before it is made; equal runs have equal results on one machine.

    Args:
        workload: by name, as `lab.workloads` knows it.
        method: how tables call it.
        rule: that decides.
        scale: S = B / B0 of the first step.
        budget: its length.
        seed: of weights and samples.
        lr: base rate; None for the workload's.
        micro_batch: samples of one backward; None for one base batch.
        temporal: measure by `lb.measure.TemporalMoments`, which needs one backward a step.
        evaluations: points of the validation curve.
        keep_gains: whether the result holds what each step was worth.
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
        """Differs when anything of it does."""
        return hashlib.sha256(_recorded_text(self).encode()).hexdigest()[:16]

    @property
    def changes(self) -> tuple[str, ...]:
        """What is decided or computed in another way than by version 0.1, for the same settings."""
        changes = []
        rule = repr(self.rule)
        if "preconditioned_moments" in rule:
            changes.append("the first steps of Adam, which divide nothing, are left out")
        if "AdaScale(" in rule and (self.temporal or self.micro_batch is not None):
            changes.append("the averages' window counts base batches, not parts")
        return tuple(changes)

    @property
    def facts(self) -> dict[str, Any]:
        """For the record, beside the key."""
        return {
            "workload": self.workload,
            "method": self.method,
            "scale": self.scale,
            "budget": {k: v for k, v in asdict(self.budget).items() if v is not None},
            "seed": self.seed,
            "lr": self.lr,
        }

    def make(self) -> Result:
        """Trains as it says, on one thread of this process. A peer's run overrides it."""
        return train(self)

    def meter(self, model: nn.Module) -> lb.Meter:
        """How its gradients are measured."""
        statistics = [lb.measure.TemporalMoments()] if self.temporal else None
        return lb.Meter(model, statistics=statistics)

    def judging(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Stands around each evaluation, for optimizers with weights of two kinds."""
        return nullcontext()

    def look(self, model: nn.Module) -> tuple[float, ...]:
        """What else each point of the curve has, behind the validation loss."""
        return ()

    def ends(self, record: lb.MemoryRecord) -> bool:
        """Whether it ends before its budget does, as where measuring is paid from it."""
        return False

    def told(self, control: lb.Controller, record: lb.MemoryRecord) -> Told:
        """What else is kept of a run."""
        return Told()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to.

    Args:
        steps, samples, base_steps: the clocks at its end.
        mean_gain: base steps a step.
        mean_multiplier: mean factor on the base rate.
        diverged: whether loss or gradient was not finite ten times in a row, or the last loss.
        train, validation, test: means over the split by metric; empty after a divergence.
        curve: (steps, samples, base steps, validation loss), and what the kind of run looks at.
        gains: what each step was worth to six digits, where it was asked for.
        forecast: (scale, mean gain, its low, its high), where the run was a probe.
        told: what its kind of run tells besides.
        seconds: of training and evaluation, on one thread of a machine that others may use.
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
    told: Told = field(default_factory=Told)
    seconds: float = 0.0


def train(run: Run, *, spoiled: int | None = None) -> Result:
    """Trains with the `Controller`.

    Args:
        run: what to train.
        spoiled: the step whose loss is made infinite.
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
        told=run.told(control, record),
        seconds=time.perf_counter() - began,
    )
