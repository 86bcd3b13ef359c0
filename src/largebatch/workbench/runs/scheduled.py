"""A run that follows a schedule's file: its rule is the method, and its samples are the budget."""

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
    """The schedule in a file, and the workload without its own one, in whose place it comes.

    Args:
        path: of the file.
        workload: whose base batch is that of the file.
        method, budget, scale: as `train` was given them; the file says them all.

    Raises:
        RecordError: a file that is damaged or no schedule.
        ValueError: something that the file says was given, too, or another base batch.
    """
    given = {"--method": method, "--budget": budget, "--scale": scale if scale != 1 else None}
    twice = [name for name, value in given.items() if value is not None]
    if twice:
        raise ValueError(
            f"A schedule's file says method, budget and batches; {' and '.join(twice)} beside it "
            f"would say them twice. Leave out one: --schedule {os.fspath(path)}"
        )
    schedule = read_schedule(path)
    if schedule.base_batch_size != workload.base_batch_size:
        raise ValueError(
            f"{os.fspath(path)} is for a base batch of {schedule.base_batch_size}, that of "
            f"{workload.name} is {workload.base_batch_size}, and its rates are factors on the rate "
            "for it. Plan again: largebatch plan --base-batch "
            f"{workload.base_batch_size} --budget {schedule.budget}"
        )
    return schedule, replace(workload, schedule=None)


def check_fits(schedule: ScheduleFile, *, dataset_size: int, ranks: int) -> None:
    """Refuses batches that the data or the processes would change.

    Raises:
        ValueError: a batch above the data set, or below one sample for each process.
    """
    sizes = [row.batch_size for row in schedule.stages]
    if max(sizes) > dataset_size:
        stage = next(m for m, size in enumerate(sizes, start=1) if size > dataset_size)
        raise ValueError(
            f"Stage {stage} of the schedule has a batch of {sizes[stage - 1]:,}, the data set "
            f"{dataset_size:,} samples, at which batches end. Plan with largebatch plan "
            f"--memory-limit {dataset_size}"
        )
    if min(sizes) < ranks:
        raise ValueError(
            f"The schedule has a batch of {min(sizes)} and there are {ranks} processes, each of "
            f"which takes a sample at least. Start fewer: torchrun --nproc-per-node {min(sizes)}"
        )
