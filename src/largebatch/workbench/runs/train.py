"""`largebatch train`: one run of a method on a workload."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from largebatch.core.errors import NotFinite
from largebatch.core.measurement import Budget
from largebatch.core.protocols import Logger
from largebatch.core.rule import Rule
from largebatch.workbench.amounts import Length, parse_length
from largebatch.workbench.runs.distributed import Process, process_group
from largebatch.workbench.runs.launcher import launched_rank
from largebatch.workbench.runs.options import (
    MethodOptions,
    OutputOptions,
    SaveOptions,
    check_amounts,
    length_of,
    micro_batch_of,
)
from largebatch.workbench.runs.results import Report, RunResult
from largebatch.workbench.runs.run import run
from largebatch.workbench.runs.run_spec import RunSpec
from largebatch.workbench.runs.scheduled import check_fits
from largebatch.workbench.workloads import Workload, load
from largebatch.workbench.workloads.data import size


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
    """Train a workload at scale S and return the result, the same on every rank.

    Under torchrun all processes share the batch, and the result is that of one process up to
    rounding.

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
        log: more of them by name, such as "csv=run.csv" (see `runs/logger_options.py`). Those of
            a resumed run continue what is there, W&B and MLflow the run of the checkpoint.
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
    chosen = MethodOptions.of(
        workload, method=method, budget=budget, schedule=schedule, scale=scale
    )
    if chosen.notice and progress is not None and launched_rank() == 0:
        progress(chosen.notice)
    check_amounts(scale=scale, lr=lr, clip_norm=clip_norm, evaluations=evaluations)
    run_options = _RunOptions(
        method=chosen,
        scale=scale,
        seed=seed,
        lr=lr,
        clip_norm=clip_norm,
        evaluations=evaluations,
        max_micro_batch_size=micro_batch_of(max_micro_batch_size),
        length=length_of(chosen.workload, chosen.budget),
    )
    saves = SaveOptions(
        directory=checkpoint, resume=resume, keep=keep, every=checkpoint_every, on_stop=on_stop
    )
    if checkpoint_every is not None:
        parse_length(checkpoint_every, argument="checkpoint_every")
    outputs = OutputOptions(record=record, loggers=tuple(loggers), log=tuple(log), resume=resume)
    result = _run(run_options, saves, outputs, progress)
    if result.diverged:
        raise _diverged(result, record=record)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunOptions:
    """What runs; the fields are arguments of `train`, checked."""

    method: MethodOptions
    scale: int
    seed: int
    lr: float | None
    clip_norm: float | None
    evaluations: int
    max_micro_batch_size: int | Literal["auto"] | None
    length: Length | Budget

    def spec(self, process: Process) -> tuple[RunSpec, dict[str, int]]:
        """Load the data, and return the run with the sizes of data set and base batch."""
        workload, schedule = self.method.workload, self.method.schedule
        data = workload.data()
        sizes = {"dataset_size": size(data.train), "base_batch_size": workload.base_batch_size}
        if schedule is not None:
            check_fits(schedule, dataset_size=sizes["dataset_size"], ranks=process.ranks)
        length = self.length
        spec = RunSpec(
            workload=replace(workload, data=lambda: data),
            rule=self.method.rule,
            method=self.method.name,
            scale=self.scale,
            budget=length if isinstance(length, Budget) else length.budget(**sizes),
            seed=self.seed,
            lr=self.lr,
            clip_norm=self.clip_norm,
            evaluations=self.evaluations,
            max_micro_batch_size=self.max_micro_batch_size,
            first_batch_size=schedule.batch_size if schedule is not None else None,
        )
        return spec, sizes


def _run(
    options: _RunOptions, saves: SaveOptions, outputs: OutputOptions, progress: Report | None
) -> RunResult:
    with saves.opened() as checkpoints:
        named = outputs.named_loggers()
        with process_group() as process:
            spec, sizes = options.spec(process)
            sink, resumable = outputs.sink(named)
            return run(
                spec,
                process=process,
                record=sink,
                report=progress,
                label=options.method.label(options.scale),
                saving=saves.saving(checkpoints, sizes=sizes, budget=spec.budget),
                loggers=resumable,
            )


def _diverged(result: RunResult, *, record: str | os.PathLike[str] | None) -> NotFinite:
    kept = f" The record of these steps is in {record}." if record is not None else ""
    which = f"{result.method} at scale {result.scale}"
    if result.steps == 0:
        return NotFinite(
            f"{which} stopped before its first update: at the initial weights loss or gradient is "
            "not finite already, so no rate helps. Look for NaN or infinite values in the data, "
            "and for a logarithm or division in the loss: "
            f"torch.autograd.set_detect_anomaly(True) names it.{kept}"
        )
    return NotFinite(
        f"{which} diverged after {result.steps} steps and {result.samples} samples: loss or "
        f"gradient is not finite. Lower the base rate, which was {result.lr:g}: --lr "
        f"{result.lr / 2:g}; or bound the gradient: --clip-norm 1.{kept}"
    )
