"""A schedule as a file: the table that one reads, and the rule that makes it.

    {"version": 1, "base_batch_size": ..., "budget": ..., "stages": [...], "rule": {...}}

The rule is what a run follows; the stages are what it comes to. A file in which they differ was
changed by hand or damaged, and is refused.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from largebatch.core.codec import decode, encode
from largebatch.core.errors import RecordError
from largebatch.core.rule import Rule, chain
from largebatch.rules.kinds import KINDS
from largebatch.workbench.amounts import MAX_SAMPLES
from largebatch.workbench.planner.table import StageRow, Table, table_of

VERSION = 1
"""Of the file's form."""

REMEDY = "Make the schedule again, and write it to a new file."


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFile:
    """A schedule, its budget, and the batch for which the base rate is meant.

    Args:
        version: of the form.
        base_batch_size: B0, in samples.
        budget: in samples.
        stages: what the rule comes to, from the first batch on.
        rule: a chain of rules on the clock.
    """

    version: int
    base_batch_size: int
    budget: int
    stages: tuple[StageRow, ...]
    rule: Rule

    @property
    def batch_size(self) -> int:
        """Samples of the first step."""
        return self.stages[0].batch_size

    @property
    def table(self) -> Table:
        """The stages with their sums."""
        return Table(base_batch_size=self.base_batch_size, budget=self.budget, rows=self.stages)


def schedule_of(rule: Rule, table: Table) -> ScheduleFile:
    """Return a rule and its table as a schedule that can be written.

    Args:
        rule: a chain, as `clock_schedule` returns it.
        table: what it does.
    """
    return ScheduleFile(
        version=VERSION,
        base_batch_size=table.base_batch_size,
        budget=table.budget,
        stages=table.rows,
        rule=rule,
    )


def write_schedule(schedule: ScheduleFile, out: str | os.PathLike[str]) -> None:
    """Write a schedule to a new file.

    Raises:
        RecordError: there is a file already, or it cannot be written.
    """
    plain = encode(schedule)
    stages = ",\n  ".join(json.dumps(row, allow_nan=False) for row in plain.pop("stages"))
    rule = json.dumps(plain.pop("rule"), allow_nan=False)
    head = json.dumps(plain, allow_nan=False).removesuffix("}")
    text = f'{head},\n "stages": [\n  {stages}\n ],\n "rule": {rule}\n}}\n'
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecordError(
            f"{out} exists, and a schedule is never overwritten. Pass another file: out='new.json'"
        ) from None
    except OSError as error:
        raise RecordError(f"{out} cannot be written ({error.strerror}).") from error


def read_schedule(path: str | os.PathLike[str]) -> ScheduleFile:
    """Return the schedule in a file that `write_schedule` wrote.

    Raises:
        RecordError: a file that cannot be read, is no schedule, or in which stages overlap, are
            not sorted, leave the range of numbers or are not those of the rule.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is no schedule: not JSON, {error!s:.120}. {REMEDY}") from None
    version = plain.get("version") if isinstance(plain, dict) else None
    if version != VERSION:
        raise RecordError(
            f"{path} is no schedule of this version, which writes version {VERSION}; found "
            f"{version!r:.40}. {REMEDY}"
        )
    schedule = _decoded(plain, path)
    _check_stages(schedule, path)
    _check_rule(schedule, path)
    return schedule


def _decoded(plain: Any, path: str | os.PathLike[str]) -> ScheduleFile:
    try:
        schedule: ScheduleFile = decode(ScheduleFile, plain, kinds=KINDS, where=str(path))
        chain(schedule.rule)
    except (ValueError, TypeError, OverflowError) as error:
        raise RecordError(f"{path} holds a rule that is refused: {error}") from None
    return schedule


def _check_stages(schedule: ScheduleFile, path: str | os.PathLike[str]) -> None:
    rows = schedule.stages
    if not rows or rows[0].samples != 0 or not 0 < schedule.budget <= MAX_SAMPLES:
        raise RecordError(
            f"{path}: the first stage begins at 0 samples, and the budget is at most "
            f"{MAX_SAMPLES:,}; found {len(rows)} stages and a budget of {schedule.budget:,}."
        )
    for m, row in enumerate(rows, start=1):
        rates = (row.lr, row.last_lr)
        if row.batch_size < 1 or row.steps < 1 or not all(0.0 <= r < math.inf for r in rates):
            raise RecordError(
                f"{path}: stage {m} has a batch and steps of at least 1 and finite rates; found "
                f"{row}."
            )
    for m, (row, after) in enumerate(pairwise(rows), start=1):
        end = row.samples + row.steps * row.batch_size
        if after.samples <= row.samples:
            raise RecordError(
                f"{path}: stages are sorted by where they begin; stage {m + 1} begins at "
                f"{after.samples:,}, stage {m} at {row.samples:,}."
            )
        if after.samples != end:
            what = "overlaps with" if after.samples < end else "leaves a gap before"
            raise RecordError(
                f"{path}: stage {m} ends at {end:,} samples and {what} stage {m + 1}, which begins "
                f"at {after.samples:,}."
            )
    if rows[-1].samples >= schedule.budget:
        raise RecordError(
            f"{path}: stage {len(rows)} begins at {rows[-1].samples:,} samples and is never "
            f"reached within {schedule.budget:,}."
        )


def _check_rule(schedule: ScheduleFile, path: str | os.PathLike[str]) -> None:
    try:
        table = table_of(
            schedule.rule,
            budget=schedule.budget,
            base_batch_size=schedule.base_batch_size,
            batch_size=schedule.batch_size,
        )
    except (ValueError, OverflowError) as error:
        raise RecordError(f"{path} holds a rule that is refused: {error}") from None
    same = len(table.rows) == len(schedule.stages) and all(map(_same, table.rows, schedule.stages))
    if not same:
        raise RecordError(
            f"{path}: its stages are not those of its rule, so one of them was changed. {REMEDY}"
        )


def _same(one: StageRow, other: StageRow) -> bool:
    """Whether two rows agree; rates up to what machines round differently."""
    counts = ("samples", "batch_size", "steps", "cumulative_steps")
    rates = ("lr", "last_lr")
    return all(getattr(one, n) == getattr(other, n) for n in counts) and all(
        math.isclose(getattr(one, n), getattr(other, n), rel_tol=1e-9, abs_tol=1e-12) for n in rates
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not legal JSON")
