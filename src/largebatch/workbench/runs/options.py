"""Hold the options of a run and check them before any data are loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from largebatch.core.amounts import parse_amount
from largebatch.core.measurement import Budget
from largebatch.core.protocols import Logger, Sink
from largebatch.core.rule import Rule
from largebatch.record import Checkpoints, JsonlRecord, Logged, Tee
from largebatch.workbench.amounts import MAX_SAMPLES, Length, parse_length
from largebatch.workbench.planner.schedule_file import ScheduleFile
from largebatch.workbench.runs.checkpoint import Saving
from largebatch.workbench.runs.directory import opened
from largebatch.workbench.runs.launcher import launched_rank
from largebatch.workbench.runs.logger_options import ResumableLoggers, check_file, loggers_of
from largebatch.workbench.runs.method_names import optimizer_of, rule_of
from largebatch.workbench.runs.method_optimizers import with_method_optimizer
from largebatch.workbench.runs.scheduled import schedule_for
from largebatch.workbench.workloads import Workload

LARGEST_SCALE = 1_000_000
"""Largest accepted scale.

A training step has one backward call per base batch, so a training step at a scale above the
largest accepted scale would not end in a reasonable time.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """Hold the method that trains a workload.

    Args:
        workload: Workload with the optimizer that the method needs.
        rule: Rule that sets the learning rate and the batch size.
        name: Name of the method.
        budget: Length of the run as text or as a budget; None for the workload's number of epochs.
        schedule: Schedule file that the run follows, if any.
        notice: Sentence for the user that describes what was changed in the workload. The sentence
            is empty if nothing was changed.
    """

    workload: Workload
    rule: Rule
    name: str
    budget: str | Budget | None
    schedule: ScheduleFile | None = None
    notice: str = ""

    @classmethod
    def of(
        cls,
        workload: Workload,
        *,
        method: str | Rule | None,
        budget: str | Budget | None,
        schedule: str | os.PathLike[str] | None,
        scale: int,
    ) -> MethodOptions:
        """Return the options for a method name, a rule or a schedule file.

        Raises:
            RecordError: The schedule file is corrupted.
            ValueError: The name is unknown, or the schedule file does not fit the arguments.
        """
        if schedule is not None:
            planned, workload = schedule_for(
                schedule, workload, method=method, budget=budget, scale=scale
            )
            samples = Budget(samples=planned.budget)
            return cls(
                workload=workload,
                rule=planned.rule,
                name="schedule",
                budget=samples,
                schedule=planned,
            )
        method = "adascale" if method is None else method
        rule, name = rule_of(method)
        workload, changed = with_method_optimizer(workload, optimizer_of(method))
        notice = f"{workload.name} with the method {name} is {changed}." if changed else ""
        return cls(workload=workload, rule=rule, name=name, budget=budget, notice=notice)

    def label(self, scale: int) -> str:
        """Return the name of the run that the progress display shows."""
        label = f"{self.workload.name}: {self.name}"
        return label if self.schedule is not None else f"{label}, scale {scale}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOptions:
    """Hold the arguments of `train` that say whether, where and how often a run is saved."""

    directory: str | os.PathLike[str] | None
    resume: bool
    keep: int
    every: str | None
    on_stop: Callable[[], None] | None

    def opened(self) -> AbstractContextManager[Checkpoints | None]:
        """Return a context that locks the directory for the run; see `directory.opened`."""
        return opened(self.directory, resume=self.resume, keep=self.keep, every=self.every)

    def saving(
        self, checkpoints: Checkpoints | None, *, sizes: Mapping[str, int], budget: Budget
    ) -> Saving | None:
        """Return where and how often the run is saved; None for a run that is not saved.

        Args:
            checkpoints: Opened directory of checkpoints, or None.
            sizes: Sizes of the data set and of the base batch, which convert an interval in epochs.
            budget: Budget of the run. The default interval is a hundredth of the budget.
        """
        if checkpoints is None:
            return None
        every = _hundredth(budget)
        if self.every is not None:
            every = parse_length(self.every, argument="checkpoint_every").budget(**sizes)
        return Saving(
            checkpoints=checkpoints, every=every, resume=self.resume, on_stop=self.on_stop
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Hold the arguments of `train` that say where the numbers of each step are written."""

    record: str | os.PathLike[str] | None
    loggers: tuple[Logger, ...]
    log: tuple[str, ...]
    resume: bool

    def named_loggers(self) -> dict[str, Logger]:
        """Check the record's file and return the loggers that `log` names.

        On all ranks except the first, nothing is checked and the result is empty.

        Raises:
            ValueError: A logger text is invalid; see `loggers_of`.
            LargeBatchError: A file exists or cannot be written; see `check_file`.
        """
        if launched_rank() > 0:
            return {}
        if self.record is not None:
            check_file(
                Path(self.record),
                resume=self.resume,
                what="a record",
                another="Pass another file: record='other.jsonl'.",
            )
        return loggers_of(self.log, resume=self.resume, record=self.record)

    def sink(self, named: Mapping[str, Logger]) -> tuple[Sink | None, ResumableLoggers | None]:
        """Return one sink for the record and all loggers, and the loggers' state to save."""
        fed = [*self.loggers, *named.values()]
        logged = Logged(*fed) if fed else None
        written = None
        if self.record is not None:
            written = JsonlRecord(self.record, append=self.resume)
        sinks: list[Sink] = [sink for sink in (written, logged) if sink is not None]
        resumable = ResumableLoggers(named=named, logged=logged) if logged else None
        return (Tee(*sinks) if sinks else None), resumable


def check_amounts(
    *,
    scale: int = 1,
    lr: float | None = None,
    clip_norm: float | None = None,
    evaluations: int = 0,
) -> None:
    """Check that the amounts of a run are in their ranges.

    Args:
        scale: Batch size as a multiple of the base batch size, 1 to `LARGEST_SCALE`.
        lr: Learning rate, finite and above 0.
        clip_norm: Largest norm of the gradient, above 0.
        evaluations: Number of points of the validation curve, at least 0.

    Raises:
        ValueError: An amount is outside its range. The message names the amount.
    """
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(
            f"scale={scale} was given, but the scale must be 1 to {LARGEST_SCALE}. The scale is "
            "the batch size divided by the base batch size. Pass scale=8."
        )
    if lr is not None and not 0.0 < lr < float("inf"):
        raise ValueError(
            f"lr={lr} was given, but the learning rate must be finite and above 0. Pass lr=0.01."
        )
    if clip_norm is not None and not clip_norm > 0.0:
        raise ValueError(
            f"clip_norm={clip_norm} was given, but the largest norm of the gradient must be above "
            "0. Pass clip_norm=1."
        )
    if evaluations < 0:
        raise ValueError(
            f"evaluations={evaluations} was given, but the number of points of the validation "
            "curve must be at least 0. Pass evaluations=8."
        )


def micro_batch_of(text: int | str | None) -> int | Literal["auto"] | None:
    """Return the largest micro-batch size that a text or a number stands for.

    >>> micro_batch_of("64"), micro_batch_of("auto"), micro_batch_of(None)
    (64, 'auto', None)

    Raises:
        ValueError: The value is neither a number of samples nor "auto".
    """
    if text is None:
        return None
    if text == "auto":
        return "auto"
    found = parse_amount(str(text))
    size = found.whole if found is not None and found.unit == "samples" else None
    if size is None or not 1 <= size <= MAX_SAMPLES:
        raise ValueError(
            f"max_micro_batch_size={text} was given, but the largest micro-batch size must be a "
            "number of samples, at least 1, or 'auto' for the largest size that fits into memory. "
            "Pass max_micro_batch_size=64."
        )
    return size


def length_of(workload: Workload, budget: str | Budget | None) -> Length | Budget:
    """Return the length of a run that is given as text or as a budget.

    By default, a run has the workload's number of epochs.

    Raises:
        ValueError: The text has no known form.
    """
    if budget is None:
        return Length(amount=workload.budget_epochs, unit="epochs")
    return parse_length(budget) if isinstance(budget, str) else budget


def _hundredth(budget: Budget) -> Budget:
    if budget.base_steps is not None:
        return Budget(base_steps=budget.base_steps / 100)
    whole = max(round(budget.amount / 100), 1)
    return Budget(samples=whole) if budget.samples is not None else Budget(steps=whole)
