"""`largebatch plan --dry-run`: the stages and steps of a schedule, without training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from largebatch.workbench.planner.named import schedule_named
from largebatch.workbench.planner.schedule_file import read_schedule, schedule_of, write_schedule
from largebatch.workbench.planner.table import Table, table_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a schedule comes to.

    Args:
        schedule: its name, its steps or its file.
        table: the stages.
        mean_batch_size: samples a step.
        constant_steps: of the base batch throughout.
        saved: the part of them that it does without; below 0 where it takes more.
        notes: what to know about it.
    """

    schedule: str
    table: Table
    mean_batch_size: float
    constant_steps: int
    saved: float
    notes: tuple[str, ...] = ()


def dry_run(
    schedule: str,
    *,
    budget: int | None = None,
    base_batch_size: int | None = None,
    noise_scale: float | None = None,
    most: int | None = None,
    scale: int = 1,
    out: str | os.PathLike[str] | None = None,
) -> DryRun:
    """The table of a schedule over a budget.

    Args:
        schedule: a name, a string of steps such as "0:768 250B:1536", or a schedule's file.
        budget: in samples; that of a file is its own.
        base_batch_size: B0, in samples; that of a file is its own.
        noise_scale: in samples; bounds the batches of seesaw and smith.
        most: largest batch, in samples, of seesaw and smith.
        scale: S, the first batch in base batches, where the schedule does not say it.
        out: a new file for the schedule.

    Raises:
        ValueError: an unknown schedule, one that decides by what it measures, a budget smaller
            than the first batch, or a missing or doubled number.
        RecordError: a damaged file.
    """
    if Path(schedule).suffix == ".json" or Path(schedule).is_file():
        given = {"--budget": budget, "--base-batch": base_batch_size, "--noise-scale": noise_scale}
        twice = [name for name, value in given.items() if value is not None]
        if twice or scale != 1:
            raise ValueError(
                f"{schedule} says its budget and batches itself; leave out "
                f"{' and '.join(twice or ['--scale'])}."
            )
        read = read_schedule(schedule)
        rule, budget, base_batch_size = read.rule, read.budget, read.base_batch_size
        first: int | None = read.batch_size
    else:
        if budget is None or base_batch_size is None:
            raise ValueError(
                "A dry run needs the budget in samples and the base batch: largebatch plan "
                f"--dry-run {schedule!r} --budget 10M --base-batch 256"
            )
        rule = schedule_named(
            schedule, base_batch_size=base_batch_size, noise_scale=noise_scale, most=most
        )
        first = scale * base_batch_size if scale != 1 else None
    table = table_of(rule, budget=budget, base_batch_size=base_batch_size, batch_size=first)
    if out is not None:
        write_schedule(schedule_of(rule, table), out)
    return DryRun(
        schedule=schedule,
        table=table,
        mean_batch_size=table.mean_batch_size,
        constant_steps=table.constant_steps,
        saved=table.saved,
        notes=_notes(schedule, table, noise_scale),
    )


def _notes(schedule: str, table: Table, noise_scale: float | None) -> tuple[str, ...]:
    notes = []
    if table.passed_over:
        notes.append(
            f"{table.passed_over} of its stages are shorter than a step of theirs and are passed "
            "over."
        )
    if schedule == "seesaw" and noise_scale is None:
        notes.append(
            "No noise scale was given, so nothing ends the growth; a run would end it at the "
            "noise scale that it measures: --noise-scale 4000"
        )
    return tuple(notes)
