"""The stages and steps of a schedule, counted and not trained."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from largebatch.workbench.planner.schedule_file import read_schedule, schedule_of, write_schedule
from largebatch.workbench.planner.schedule_names import schedule_named
from largebatch.workbench.planner.table import Table, clock_schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleCount:
    """The stages and steps of a schedule over a budget.

    Args:
        schedule: its name, its steps or its file.
        table: the stages.
        mean_batch_size: samples per step.
        constant_steps: of the base batch throughout.
        saved: fraction of these steps that the schedule saves; below 0 if it takes more.
        notes: what to know about it.
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
    """Return the table of a schedule over a budget.

    Args:
        schedule: a name, a string of steps such as "0:768 250B:1536", or a schedule's file.
        budget: in samples; that of a file is its own.
        base_batch_size: B0, in samples; that of a file is its own.
        noise_scale: in samples; bounds the batches of seesaw and smith.
        max_batch_size: largest batch, in samples, of seesaw and smith.
        scale: S, the first batch in base batches, where the schedule does not say it.
        out: a new file for the schedule.

    Raises:
        ValueError: an unknown schedule, one that decides by what it measures, a budget smaller
            than the first batch, or a missing or doubled number.
        RecordError: a damaged file.
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
            f"To count the steps of {schedule!r}, the budget in samples and the base batch are "
            "needed. Pass budget=10_000_000 and base_batch_size=256"
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
    """Refuse what a schedule's file says itself."""
    twice = [f"{name}={value}" for name, value in given.items() if value is not None]
    if twice:
        raise ValueError(
            f"{schedule} has a budget and batches of its own. Leave out {' and '.join(twice)}"
        )


def _notes(schedule: str, table: Table, noise_scale: float | None) -> tuple[str, ...]:
    notes = []
    if table.passed_over:
        notes.append(
            f"{table.passed_over} of its stages are shorter than one step of their batch and are "
            "passed over."
        )
    if schedule == "seesaw" and noise_scale is None:
        notes.append(
            "No noise scale was given, so nothing ends the growth. A run would end it at the noise "
            "scale that it measures. Pass noise_scale=4000 to end it there."
        )
    return tuple(notes)
