"""`largebatch train`: one run of a method on a workload."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from largebatch.core.errors import NotFinite
from largebatch.core.measurement import Budget
from largebatch.core.protocols import Logger, Sink
from largebatch.core.rule import Rule, label_of
from largebatch.methods import METHODS, Method
from largebatch.record import JsonlRecord, Logged, Tee
from largebatch.workbench.amounts import Length, parse_length
from largebatch.workbench.planner.schedule_file import ScheduleFile
from largebatch.workbench.runs.checkpoint import Saving
from largebatch.workbench.runs.directory import opened
from largebatch.workbench.runs.distributed import joined, launched_rank
from largebatch.workbench.runs.loggers import Runs, check_file, loggers_of
from largebatch.workbench.runs.optimizers import suited
from largebatch.workbench.runs.results import Report, RunResult
from largebatch.workbench.runs.run import run
from largebatch.workbench.runs.scheduled import check_fits, schedule_for
from largebatch.workbench.runs.spec import Plan
from largebatch.workbench.workloads import Workload, load
from largebatch.workbench.workloads.data import size

LARGEST_SCALE = 1_000_000
"""A step of more base batches, each a backward, would never end."""


def train(
    workload: str | Workload,
    *,
    method: str | Rule | None = None,
    scale: int = 1,
    budget: str | Budget | None = None,
    schedule: str | os.PathLike[str] | None = None,
    seed: int = 0,
    lr: float | None = None,
    record: str | os.PathLike[str] | None = None,
    evaluations: int = 8,
    clip_norm: float | None = None,
    progress: Report | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    keep: int = 3,
    checkpoint_every: str | None = None,
    on_stop: Callable[[], None] | None = None,
    loggers: Sequence[Logger] = (),
    log: Sequence[str] = (),
    max_micro_batch_size: int | str | None = None,
) -> RunResult:
    """Trains a workload at scale S and gives what came of it, the same on every rank.

    Under torchrun the batch is shared by all processes, and the result is that of one process up
    to rounding.

    Args:
        workload: a name, "package.module:factory", or the workload itself.
        method: a name of `METHODS`, or a rule of your own; None for adascale, or the schedule's.
            A method that is named after an optimizer replaces a workload's other one, at a rate
            that is tuned for none; with all others the workload's stays.
        scale: S = B / B0 of the first step, at least 1.
        budget: such as "5ep" (see `parse_length`); None for the workload's epochs.
        schedule: a file that `largebatch plan` wrote, in place of method, scale and budget.
        seed: of the model and of the sample stream.
        lr: learning rate at the base batch; None for the workload's.
        record: a file for each step's numbers, which must not exist.
        evaluations: points of the validation curve.
        clip_norm: largest norm of the gradient.
        progress: called after each step, on the first rank.
        checkpoint: a directory in which the run is saved, whole and between steps.
        resume: go on from the newest checkpoint in it, with the same bits on the same number of
            ranks; without one the run starts. The record is then added to.
        keep: how many checkpoints are kept.
        checkpoint_every: such as "0.5ep" or "10k" (see `parse_length`); None for a hundredth of
            the budget.
        on_stop: called once, on every rank, by the handler of the first signal that asks a saved
            run to stop; it may interrupt anything, printing too.
        loggers: each gets every step's numbers (see `lb.Logged`), on the first rank.
        log: more of them by name, such as "csv=run.csv" (see `commands/loggers.py`). Of a resumed
            run they go on with what is there, W&B and MLflow with the run of the checkpoint.
        max_micro_batch_size: most samples of one backward on one rank, or "auto" for the largest
            that fits into memory, found before the first step; None for one base batch, or less
            where the workload says so. More in one backward means fewer parts to measure.

    Raises:
        Stopped: by SIGTERM or Ctrl-C while it is saved in `checkpoint`.
        CheckpointError: checkpoints of another run, or damaged ones, or a run that is training in
            the directory.
        ValueError: an unknown name or a bad amount, before any training step.
        NotFinite: the run diverged; its record is kept.
        LargeBatchError: missing data, a record or a logger's file that exists or cannot be
            written, or a logger whose package is missing.
    """
    workload = load(workload) if isinstance(workload, str) else workload
    planned: ScheduleFile | None = None
    if schedule is not None:
        planned, workload = schedule_for(
            schedule, workload, method=method, budget=budget, scale=scale
        )
        rule, name, budget = planned.rule, "schedule", Budget(samples=planned.budget)
    else:
        method = "adascale" if method is None else method
        rule, name = rule_of(method)
        workload, changed = suited(workload, optimizer_of(method))
        if changed and progress is not None and launched_rank() == 0:
            progress(f"{workload.name}: {name}, {changed}")
    check_amounts(scale=scale, lr=lr, clip_norm=clip_norm, evaluations=evaluations)
    most = micro_batch_of(max_micro_batch_size)
    length = length_of(workload, budget)
    interval = parse_length(checkpoint_every) if checkpoint_every is not None else None
    with opened(checkpoint, resume=resume, keep=keep, every=checkpoint_every) as checkpoints:
        if record is not None and launched_rank() == 0:
            check_file(
                Path(record),
                resume=resume,
                what="a record",
                another="Name another file: --record other.jsonl",
            )
        named = loggers_of(log, resume=resume, record=record) if launched_rank() == 0 else {}
        with joined() as place:
            data = workload.data()
            sizes = {
                "dataset_size": size(data.train),
                "base_batch_size": workload.base_batch_size,
            }
            if planned is not None:
                check_fits(planned, dataset_size=sizes["dataset_size"], ranks=place.ranks)
            plan = Plan(
                workload=replace(workload, data=lambda: data),
                rule=rule,
                method=name,
                scale=scale,
                budget=length if isinstance(length, Budget) else length.budget(**sizes),
                seed=seed,
                lr=lr,
                clip_norm=clip_norm,
                evaluations=evaluations,
                max_micro_batch_size=most,
                first_batch_size=planned.batch_size if planned is not None else None,
            )
            saving = (
                None
                if checkpoints is None
                else Saving(
                    checkpoints=checkpoints,
                    every=interval.budget(**sizes) if interval else _hundredth(plan.budget),
                    resume=resume,
                    on_stop=on_stop,
                )
            )
            fed = [*loggers, *named.values()]
            logged = Logged(*fed) if fed else None
            result = run(
                plan,
                place=place,
                record=_sink(record, logged, resume=resume),
                report=progress,
                label=f"{workload.name}: {name}" + (f", scale {scale}" if planned is None else ""),
                saving=saving,
                runs=Runs(named=named, logged=logged) if logged else None,
            )
    if result.diverged:
        kept = f" The record of these steps is in {record}." if record is not None else ""
        if result.steps == 0:
            raise NotFinite(
                f"{name} at scale {scale} stopped before its first update: at the initial weights "
                "loss or gradient is not finite already, so no rate helps. Look for NaN or "
                "infinite values in the data, and for a logarithm or division in the loss: "
                f"torch.autograd.set_detect_anomaly(True) names it.{kept}"
            )
        raise NotFinite(
            f"{name} at scale {scale} diverged after {result.steps} steps and {result.samples} "
            f"samples: loss or gradient is not finite. Lower the base rate, which was "
            f"{result.lr:g}: --lr {result.lr / 2:g}; or bound the gradient: --clip-norm 1.{kept}"
        )
    return result


def rule_of(method: str | Rule) -> tuple[Rule, str]:
    """The rule of a method's name, or the rule that was given, and how it is called.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(method, str):
        return method, label_of(method)
    return method_named(method).rule(), method


def optimizer_of(method: str | Rule) -> str | None:
    """The kind of optimizer that a method brings, see `suited`; None for the workload's.

    Raises:
        ValueError: an unknown name.
    """
    return method_named(method).optimizer if isinstance(method, str) else None


def method_named(name: str) -> Method:
    """The method of a name.

    >>> method_named("adascale").own_clock
    True

    Raises:
        ValueError: an unknown name, with the closest one.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        raise ValueError(
            f"There is no method {name!r}."
            + (f" Did you mean {close[0]!r}?" if close else "")
            + f" Known: {', '.join(METHODS)}; see: largebatch methods"
        )
    return METHODS[name]


def check_amounts(
    *,
    scale: int = 1,
    lr: float | None = None,
    clip_norm: float | None = None,
    evaluations: int = 0,
) -> None:
    """Refuses amounts that mean nothing.

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
    """The largest micro-batch as it was given.

    >>> micro_batch_of("64"), micro_batch_of("auto"), micro_batch_of(None)
    (64, 'auto', None)

    Raises:
        ValueError: neither a number of samples nor "auto".
    """
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        size = int(text)
    except ValueError:
        size = 0
    if size < 1:
        raise ValueError(
            "The largest micro-batch is a number of samples, at least 1, or auto for what fits; "
            f"got {text}. Example: --max-micro-batch-size 64"
        )
    return size


def _sink(
    record: str | os.PathLike[str] | None, logged: Logged | None, *, resume: bool
) -> Sink | None:
    """The record and the loggers as one, if there are any."""
    written = JsonlRecord(record, append=resume) if record is not None else None
    sinks: list[Sink] = [sink for sink in (written, logged) if sink is not None]
    return Tee(*sinks) if sinks else None


def _hundredth(budget: Budget) -> Budget:
    if budget.base_steps is not None:
        return Budget(base_steps=budget.base_steps / 100)
    whole = max(round(budget.amount / 100), 1)
    return Budget(samples=whole) if budget.samples is not None else Budget(steps=whole)


def length_of(workload: Workload, budget: str | Budget | None) -> Length | Budget:
    """What a text, a budget or None (the workload's epochs) means.

    Raises:
        ValueError: a text of no known form.
    """
    if budget is None:
        return Length(amount=workload.budget_epochs, unit="epochs")
    return parse_length(budget) if isinstance(budget, str) else budget
