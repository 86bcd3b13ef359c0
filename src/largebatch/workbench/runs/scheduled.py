"""Train with a schedule file, which sets the method, the budget and the batch sizes."""

from __future__ import annotations

import os
from dataclasses import replace

from largebatch.core.measurement import Budget
from largebatch.core.rule import Rule
from largebatch.workbench.planner.schedule_file import ScheduleFile, read_schedule
from largebatch.workbench.workloads import Workload


def schedule_for(
    path: str | os.PathLike[str],
    workload: Workload,
    *,
    method: str | Rule | None,
    budget: str | Budget | None,
    scale: int,
) -> tuple[ScheduleFile, Workload]:
    """Return the schedule in a file, and the workload without its own schedule.

    Args:
        path: Path of the schedule file.
        workload: Workload whose base batch size equals the one in the file.
        method: Argument `method` of `train`. `method` must be None, because the file sets the
            method.
        budget: Argument `budget` of `train`. `budget` must be None, because the file sets the
            budget.
        scale: Argument `scale` of `train`. `scale` must be 1, because the file sets the batch
            sizes.

    Raises:
        RecordError: The file is corrupted or not a schedule.
        ValueError: A setting of the file was also given as an argument, or the base batch sizes
            differ.
    """
    given = {"method": method, "budget": budget, "scale": scale if scale != 1 else None}
    twice = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if twice:
        raise ValueError(
            f"{' and '.join(twice)} and a schedule file were given, but the file already sets the "
            "method, the budget and the batch sizes. Pass only the file: "
            f"schedule='{os.fspath(path)}'."
        )
    schedule = read_schedule(path)
    if schedule.base_batch_size != workload.base_batch_size:
        raise ValueError(
            f"The schedule {os.fspath(path)} is made for the base batch size "
            f"{schedule.base_batch_size}, but the workload {workload.name} has the base batch size "
            f"{workload.base_batch_size}. Make a new schedule: largebatch plan --base-batch "
            f"{workload.base_batch_size} --budget {schedule.budget}"
        )
    return schedule, replace(workload, schedule=None)


def check_fits(schedule: ScheduleFile, *, dataset_size: int, ranks: int) -> None:
    """Check that every batch size of a schedule can be used with the data and the processes.

    Args:
        schedule: Schedule whose batch sizes are checked.
        dataset_size: Number of training samples.
        ranks: Number of processes that share each batch.

    Raises:
        ValueError: A batch is larger than the data set, or smaller than the number of processes.
    """
    sizes = [row.batch_size for row in schedule.stages]
    if max(sizes) > dataset_size:
        stage = next(m for m, size in enumerate(sizes, start=1) if size > dataset_size)
        raise ValueError(
            f"Stage {stage} of the schedule has the batch size {sizes[stage - 1]:,}, but the data "
            f"set has only {dataset_size:,} samples. Make a new schedule with smaller batches: "
            f"largebatch plan --memory-limit {dataset_size}"
        )
    if min(sizes) < ranks:
        raise ValueError(
            f"The smallest batch of the schedule has {min(sizes)} samples, but {ranks} processes "
            "share it, and each process needs at least one sample. Start fewer processes: torchrun "
            f"--nproc-per-node {min(sizes)}"
        )
