"""Count the stages and steps of a schedule without training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from largebatch.workbench.planner.schedule_file import read_schedule, schedule_of, write_schedule
from largebatch.workbench.planner.schedule_names import schedule_named
from largebatch.workbench.planner.table import Table, clock_schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleCount:
    """Hold the stages and the number of steps of a schedule over a budget.

    Args:
        schedule: Name, string or file of the schedule.
        table: Stages of the schedule.
        mean_batch_size: Mean number of samples per step.
        constant_steps: Number of steps that a run at the constant base batch size takes.
        saved: Fraction of `constant_steps` that the schedule saves; negative if the schedule takes
            more steps than `constant_steps`.
        notes: Remarks about the result, as sentences.
    """

    schedule: str
    table: Table
    mean_batch_size: float
    constant_steps: int
    saved: float
    notes: tuple[str, ...] = ()


def count_schedule(
    schedule: str,
    *,
    budget: int | None = None,
    base_batch_size: int | None = None,
    noise_scale: float | None = None,
    max_batch_size: int | None = None,
    scale: int = 1,
    out: str | os.PathLike[str] | None = None,
) -> ScheduleCount:
    """Return the stages and the number of steps of a schedule over a budget.

    >>> from largebatch import workbench
    >>> count = workbench.count_schedule("0:16 3200:32", budget=6400, base_batch_size=16)
    >>> [(row.batch_size, row.steps) for row in count.table.rows], count.saved
    ([(16, 200), (32, 100)], 0.25)

    Args:
        schedule: Name of a schedule, string such as "0:768 250B:1536", or path of a schedule file.
            In the string, the batch size is 768 from the start and 1536 from sample 250B on.
        budget: Number of training samples. Omit budget if the schedule is a file.
        base_batch_size: Base batch size B0, in samples. Omit base_batch_size if the schedule is a
            file.
        noise_scale: Gradient noise scale in samples, which limits the batch size of the schedules
            seesaw and smith.
        max_batch_size: Largest batch size of the schedules seesaw and smith, in samples.
        scale: First batch size as a multiple S of the base batch size, for a schedule that does
            not set its first batch size.
        out: Path of a new file to which the schedule is written.

    Raises:
        ValueError: The schedule is unknown or decides by measurements, the budget is smaller than
            the first batch, or an argument is missing or given twice.
        RecordError: The schedule file is corrupted.
    """
    first: int | None = scale * base_batch_size if scale != 1 and base_batch_size else None
    if Path(schedule).suffix == ".json" or Path(schedule).is_file():
        read = read_schedule(schedule)
        given = {"budget": budget, "base_batch_size": base_batch_size, "noise_scale": noise_scale}
        _check_alone(schedule, {**given, "scale": scale if scale != 1 else None})
        rule, budget, base_batch_size = read.rule, read.budget, read.base_batch_size
        first = read.batch_size
    elif budget is None or base_batch_size is None:
        raise ValueError(
            f"Counting the steps of {schedule!r} requires the budget in samples and the base batch "
            "size. Pass budget=10_000_000 and base_batch_size=256"
        )
    else:
        rule = schedule_named(
            schedule,
            base_batch_size=base_batch_size,
            noise_scale=noise_scale,
            most=max_batch_size,
        )
    counted = clock_schedule(rule, budget=budget, base_batch_size=base_batch_size, batch_size=first)
    table = counted.table
    if out is not None:
        file = schedule_of(counted.rule, table)
        write_schedule(file, out)
    return ScheduleCount(
        schedule=schedule,
        table=table,
        mean_batch_size=table.mean_batch_size,
        constant_steps=table.constant_steps,
        saved=table.saved,
        notes=_notes(schedule, table, noise_scale),
    )


def _check_alone(schedule: str, given: dict[str, float | None]) -> None:
    """Raise ValueError if an argument is given that the schedule file already contains."""
    twice = [f"{name}={value}" for name, value in given.items() if value is not None]
    if twice:
        raise ValueError(
            f"The schedule file {schedule} already contains its budget and batch sizes, so it "
            f"cannot be combined with other values. Leave out {' and '.join(twice)}"
        )


def _notes(schedule: str, table: Table, noise_scale: float | None) -> tuple[str, ...]:
    notes = []
    if table.passed_over:
        notes.append(
            f"{table.passed_over} stage(s) of the schedule are skipped, because they are shorter "
            "than one step of their batch size."
        )
    if schedule == "seesaw" and noise_scale is None:
        notes.append(
            "No noise scale was given, so the batch size grows without limit. In a real run, the "
            "batch size grows only up to the measured noise scale. Pass noise_scale=4000 to set a "
            "limit."
        )
    return tuple(notes)
