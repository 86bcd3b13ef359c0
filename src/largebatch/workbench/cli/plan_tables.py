"""Build the tables of `largebatch plan` and `largebatch schedule`."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from largebatch.workbench.cli.plain_table import plain_table
from largebatch.workbench.planner.count import ScheduleCount
from largebatch.workbench.planner.plan import Plan
from largebatch.workbench.planner.table import StageRow, Table

ROWS = 40
"""Largest number of stages in a printed table; --json and the schedule file contain all stages."""


def count_table(result: ScheduleCount) -> RenderableType:
    """Return a table with one row per stage, followed by the totals."""
    lines = [f"Schedule {result.schedule} over {result.table.budget:,} samples:"]
    return Group(
        Text(lines[0]), stages_table(result.table), *map(Text, [_summed(result), *result.notes])
    )


def stages_table(table: Table) -> RenderableType:
    """Return a table with one row per stage, or with `ROWS` evenly selected stages."""
    shown = plain_table("stage", "from sample", "batch size", "lr x", "steps", "steps so far")
    for m in _evenly(len(table.rows)):
        row = table.rows[m]
        shown.add_row(
            str(m + 1),
            f"{row.samples:,}",
            f"{row.batch_size:,}",
            rates(row),
            f"{row.steps:,}",
            f"{row.cumulative_steps:,}",
        )
    if len(table.rows) > ROWS:
        return Group(
            shown,
            Text(f"The table shows {ROWS} of {len(table.rows)} stages; --json prints all of them."),
        )
    return shown


def rates(row: StageRow) -> str:
    """Return the factor on the base learning rate, or the first and last factor if they differ."""
    first, last = f"{row.lr:.4g}", f"{row.last_lr:.4g}"
    return first if first == last else f"{first} to {last}"


def _summed(result: ScheduleCount) -> str:
    base = result.table.base_batch_size
    more = f"{result.saved:.1%} fewer" if result.saved >= 0.0 else f"{-result.saved:.1%} more"
    return (
        f"{result.table.steps:,} steps, {more} than the {result.constant_steps:,} steps at the "
        f"constant base batch size {base:,}. The mean batch size is "
        f"{result.mean_batch_size:,.1f} samples.\n"
        "lr x: factor on the base learning rate."
    )


def _evenly(count: int) -> list[int]:
    if count <= ROWS:
        return list(range(count))
    return [round(i * (count - 1) / (ROWS - 1)) for i in range(ROWS)]


def plan_table(result: Plan) -> RenderableType:
    """Return the planned schedule, all forecasts, and the shortest time by number of workers."""
    compared = plain_table(
        "schedule",
        "forecast loss",
        "loss ratio",
        "samples",
        "steps",
        "time",
        "largest batch",
        "target loss",
    )
    for row in result.rows:
        compared.add_row(
            row.schedule,
            f"{row.loss:.4g}",
            f"{row.loss / result.least_loss:.4g}",
            f"{row.samples:,}",
            f"{row.steps:,}",
            "-" if row.seconds is None else duration(row.seconds),
            f"{row.largest_batch:,}",
            "reached" if row.reaches else "missed",
        )
    parts: list[RenderableType] = [
        Text(f"Planned schedule ({result.name}; lr x is the factor on the base learning rate):"),
        stages_table(result.table),
        Text(
            f"Forecasts of all schedules. The target loss is {result.target:.4g}. The loss ratio "
            "is the forecast loss divided by the lowest forecast loss."
        ),
        compared,
    ]
    if result.workers:
        more = plain_table("workers", "time", "speed-up", "steps", "largest batch")
        for one in result.workers:
            more.add_row(
                f"{one.workers:,}",
                duration(one.seconds),
                f"{one.speed_up:.2f}",
                f"{one.steps:,}",
                f"{one.largest_batch:,}",
            )
        parts += [Text("Shortest time by number of workers, each with its own schedule:"), more]
    return Group(*parts, *map(Text, result.notes))


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes, hours or days as text.

    >>> duration(90.0), duration(200_000.0)
    ('90 s', '55.6 h')
    """
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 3.0 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.3g} s"
