"""Train one workload with one method."""

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
    """Train a workload at scale S and return the same result on every rank.

    Under torchrun, all processes share each batch. Up to rounding, a run on several processes has
    the same result as a run on one process.

    >>> from largebatch import workbench
    >>> result = workbench.train("digits", method="adascale", scale=8, budget="5steps")
    >>> result.steps, result.batch_size
    (5, 128)

    Args:
        workload: Name of a workload, "package.module:factory", or a `Workload`.
        method: Name of a method in `METHODS`, or a rule object. The default method is "adascale",
            or the schedule if one is given. A method that is named after an optimizer replaces a
            different optimizer of the workload, with a learning rate that is not tuned.
        scale: Batch size of the first step as a multiple S = B / B0 of the base batch size, at
            least 1.
        budget: Length of the run, such as "5ep"; see `parse_length`. By default, the run has the
            workload's number of epochs.
        schedule: File that `largebatch plan` wrote. The schedule replaces method, scale and budget.
        seed: Seed of the model and of the sample order.
        lr: Learning rate at the base batch size. The default is the learning rate of the workload.
        record: New file to which the numbers of each training step are written.
        evaluations: Number of points of the validation curve.
        clip_norm: Largest norm of the gradient. By default, gradients are not clipped.
        progress: Function that the first rank calls after each training step.
        checkpoint: Directory in which the run is saved. By default, the run is not saved.
        resume: Whether to resume from the newest checkpoint in the directory. If the directory
            holds no checkpoint, the run starts from the beginning. With the same number of ranks, a
            resumed run gives the same bits as an uninterrupted run. The record is continued.
        keep: Number of checkpoints to keep.
        checkpoint_every: Interval between checkpoints, such as "0.5ep" or "10k"; see
            `parse_length`. The default interval is a hundredth of the budget.
        on_stop: Function that every rank calls once when the first signal asks a saved run to stop.
            The signal can interrupt any code, including code that prints.
        loggers: Loggers that receive the numbers of every training step on the first rank; see
            `lb.Logged`.
        log: Further loggers as text, such as "csv=run.csv". The kinds are csv, tensorboard, wandb
            and mlflow. When a run is resumed, each logger continues its file or its earlier run.
        max_micro_batch_size: Largest number of samples in one backward call on one rank, or "auto"
            to find the largest that fits into memory before the first step. The default is the
            smaller of the base batch size and the workload's micro-batch size. The variance is
            estimated from the gradients of the micro-batches, so a large micro-batch size leaves
            few gradients per step for the estimate.

    Raises:
        Stopped: SIGTERM or Ctrl-C stopped the run after it was saved in `checkpoint`.
        CheckpointError: The checkpoints are of another run or corrupted, or another run uses the
            directory.
        ValueError: A name is unknown or an amount is invalid. The arguments are checked before any
            training step.
        NotFinite: The run diverged. The record of the diverged run is kept.
        LargeBatchError: The data are missing, the file of the record or of a logger exists or
            cannot be written, or the package of a logger is missing.
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
    """Hold the checked arguments of `train` that describe the run."""

    method: MethodOptions
    scale: int
    seed: int
    lr: float | None
    clip_norm: float | None
    evaluations: int
    max_micro_batch_size: int | Literal["auto"] | None
    length: Length | Budget

    def spec(self, process: Process) -> tuple[RunSpec, dict[str, int]]:
        """Load the data and return the settings of the run.

        The second result holds the sizes of the data set and of the base batch.
        """
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
    kept = f" The record of the run is in the file {record}." if record is not None else ""
    which = f"The run of {result.method} at scale {result.scale}"
    if result.steps == 0:
        return NotFinite(
            f"{which} stopped before its first update, because the loss or the gradient is not "
            "finite at the initial weights. A lower learning rate does not help. Look for NaN or "
            "infinite values in the data, and for a logarithm or a division in the loss. To find "
            f"the operation, call: torch.autograd.set_detect_anomaly(True).{kept}"
        )
    return NotFinite(
        f"{which} diverged after {result.steps} steps and {result.samples} samples, because the "
        f"loss or the gradient is not finite. The base learning rate was {result.lr:g}. Pass a "
        f"lower one: lr={result.lr / 2:g}. Or clip the gradient: clip_norm=1.{kept}"
    )
