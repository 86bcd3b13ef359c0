"""The options of a run as values, checked before data is loaded."""

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
"""A step of more base batches, each with its own backward call, would never end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """What trains the workload.

    Args:
        workload: with the optimizer that the method needs.
        rule: what sets the learning rate and the batch.
        name: of the method.
        budget: a text, a budget, or None for the workload's epochs.
        schedule: the file that the run follows, if any.
        notice: what was changed of the workload, in a user's words; empty for nothing.
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
        """Return the method of a name, a rule or a schedule's file.

        Raises:
            RecordError, ValueError: as `schedule_for`, or an unknown name.
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
        notice = f"{workload.name}: {name}, {changed}" if changed else ""
        return cls(workload=workload, rule=rule, name=name, budget=budget, notice=notice)

    def label(self, scale: int) -> str:
        """Return the name of the run in its progress."""
        label = f"{self.workload.name}: {self.name}"
        return label if self.schedule is not None else f"{label}, scale {scale}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOptions:
    """Whether, where and how often a run is saved; the fields are arguments of `train`."""

    directory: str | os.PathLike[str] | None
    resume: bool
    keep: int
    every: str | None
    on_stop: Callable[[], None] | None

    def opened(self) -> AbstractContextManager[Checkpoints | None]:
        """Return a context that holds the directory for this run alone; see `directory.opened`."""
        return opened(self.directory, resume=self.resume, keep=self.keep, every=self.every)

    def saving(
        self, checkpoints: Checkpoints | None, *, sizes: Mapping[str, int], budget: Budget
    ) -> Saving | None:
        """Return where and how often the run is saved; None for a run that is not saved.

        Args:
            checkpoints: the opened directory.
            sizes: of data set and base batch, for an interval in epochs.
            budget: of the run, of which a hundredth is the default interval.
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
    """Where each step's numbers go; the fields are arguments of `train`."""

    record: str | os.PathLike[str] | None
    loggers: tuple[Logger, ...]
    log: tuple[str, ...]
    resume: bool

    def named_loggers(self) -> dict[str, Logger]:
        """Check the record's file, and return the loggers of `log`; on the first rank alone.

        Raises:
            ValueError, LargeBatchError: as `check_file` and `loggers_of`.
        """
        if launched_rank() > 0:
            return {}
        if self.record is not None:
            check_file(
                Path(self.record),
                resume=self.resume,
                what="a record",
                another="Name another file: --record other.jsonl",
            )
        return loggers_of(self.log, resume=self.resume, record=self.record)

    def sink(self, named: Mapping[str, Logger]) -> tuple[Sink | None, ResumableLoggers | None]:
        """Return the record and all loggers as one sink, and what a resumed run needs of them."""
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
    """Refuse amounts that mean nothing.

    Raises:
        ValueError: naming the amount.
    """
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(
            f"The scale is the batch in base batches, at least 1 and at most "
            f"{LARGEST_SCALE}; got {scale}. Example: --scale 8"
        )
    if lr is not None and not 0.0 < lr < float("inf"):
        raise ValueError(f"The learning rate is finite and above 0; got {lr}. Example: --lr 0.01")
    if clip_norm is not None and not clip_norm > 0.0:
        raise ValueError(f"The clipping norm is above 0; got {clip_norm}. Example: --clip-norm 1")
    if evaluations < 0:
        raise ValueError(f"evaluations is 0 or more points of a curve; got {evaluations}.")


def micro_batch_of(text: int | str | None) -> int | Literal["auto"] | None:
    """Return the largest micro-batch that was given.

    >>> micro_batch_of("64"), micro_batch_of("auto"), micro_batch_of(None)
    (64, 'auto', None)

    Raises:
        ValueError: neither a number of samples nor "auto".
    """
    if text is None:
        return None
    if text == "auto":
        return "auto"
    found = parse_amount(str(text))
    size = found.whole if found is not None and found.unit == "samples" else None
    if size is None or not 1 <= size <= MAX_SAMPLES:
        raise ValueError(
            "The largest micro-batch is a number of samples, at least 1, or auto for what fits; "
            f"got {text}. Example: --max-micro-batch-size 64"
        )
    return size


def length_of(workload: Workload, budget: str | Budget | None) -> Length | Budget:
    """Return the length that a text, a budget or None (the workload's epochs) stands for.

    Raises:
        ValueError: a text of no known form.
    """
    if budget is None:
        return Length(amount=workload.budget_epochs, unit="epochs")
    return parse_length(budget) if isinstance(budget, str) else budget


def _hundredth(budget: Budget) -> Budget:
    if budget.base_steps is not None:
        return Budget(base_steps=budget.base_steps / 100)
    whole = max(round(budget.amount / 100), 1)
    return Budget(samples=whole) if budget.samples is not None else Budget(steps=whole)
