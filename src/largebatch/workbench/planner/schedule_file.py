"""Read and write schedule files, which contain a schedule as a table and as a rule.

    {"version": 1, "base_batch_size": ..., "budget": ..., "stages": [...], "rule": {...}}

A run follows the rule in the file. The stages in the file show a reader what the rule does. If the
stages do not match the rule, the file was edited or corrupted, and reading the file raises
RecordError.
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
"""Version of the file format."""

REMEDY = "Write the schedule to a new file with largebatch schedule or largebatch plan."


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFile:
    """Hold the contents of a schedule file.

    Args:
        version: Version of the file format.
        base_batch_size: Base batch size B0 in samples, for which the base learning rate was tuned.
        budget: Number of training samples of the run.
        stages: Stages of the run, from the first batch on.
        rule: Chain of rules whose decisions depend only on the numbers of samples and steps.
    """

    version: int
    base_batch_size: int
    budget: int
    stages: tuple[StageRow, ...]
    rule: Rule

    @property
    def batch_size(self) -> int:
        """Return the batch size of the first step, in samples."""
        return self.stages[0].batch_size

    @property
    def table(self) -> Table:
        """Return the stages as a table, which also computes totals."""
        return Table(base_batch_size=self.base_batch_size, budget=self.budget, rows=self.stages)


def schedule_of(rule: Rule, table: Table) -> ScheduleFile:
    """Return a rule and its table of stages as the contents of a schedule file.

    Args:
        rule: Chain of rules, as `clock_schedule` returns it.
        table: Stages that follow from the rule.
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
        RecordError: The file exists already or cannot be written.
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
            f"The file {out} exists, and an existing schedule is never overwritten. Pass another "
            "file: out='new.json'"
        ) from None
    except OSError as error:
        raise RecordError(
            f"The schedule cannot be written to {out} ({error.strerror}). Pass another file: "
            "out='new.json'"
        ) from error


def read_schedule(path: str | os.PathLike[str]) -> ScheduleFile:
    """Return the schedule in a file that `write_schedule` wrote.

    Raises:
        RecordError: The file cannot be read or is not a schedule file, or the stages in the file
            overlap, are not sorted, contain numbers out of range or do not match the rule.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise RecordError(
            f"The schedule file {path} cannot be read ({error.strerror}). Check the path."
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{path} is not a schedule file, because it is not valid JSON: {error!s:.120}. {REMEDY}"
        ) from None
    version = plain.get("version") if isinstance(plain, dict) else None
    if version != VERSION:
        raise RecordError(
            f"{path} is not a schedule file of version {VERSION}: its version is {version!r:.40}. "
            f"{REMEDY}"
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
        raise RecordError(_invalid_rule(path, error)) from None
    return schedule


def _check_stages(schedule: ScheduleFile, path: str | os.PathLike[str]) -> None:
    rows = schedule.stages
    if not rows or rows[0].samples != 0 or not 0 < schedule.budget <= MAX_SAMPLES:
        raise RecordError(
            f"{path} has {len(rows)} stages and a budget of {schedule.budget:,} samples, but the "
            "first stage must begin at sample 0, and the budget must lie between 1 and "
            f"{MAX_SAMPLES:,}. {REMEDY}"
        )
    for m, row in enumerate(rows, start=1):
        rates = (row.lr, row.last_lr)
        if row.batch_size < 1 or row.steps < 1 or not all(0.0 <= r < math.inf for r in rates):
            raise RecordError(
                f"In {path}, stage {m} is {row}, but its batch size and steps must be at least 1 "
                f"and its learning rates finite and at least 0. {REMEDY}"
            )
    for m, (row, after) in enumerate(pairwise(rows), start=1):
        end = row.samples + row.steps * row.batch_size
        if after.samples <= row.samples:
            raise RecordError(
                f"In {path}, stage {m + 1} begins at sample {after.samples:,}, but stage {m} "
                f"begins at sample {row.samples:,}. Stages must be sorted by their beginning. "
                f"{REMEDY}"
            )
        if after.samples != end:
            what = "overlaps with" if after.samples < end else "leaves a gap before"
            raise RecordError(
                f"In {path}, stage {m} ends at sample {end:,} and {what} stage {m + 1}, which "
                f"begins at sample {after.samples:,}. {REMEDY}"
            )
    if rows[-1].samples >= schedule.budget:
        raise RecordError(
            f"In {path}, stage {len(rows)} begins at sample {rows[-1].samples:,} and is never "
            f"reached, because the budget is {schedule.budget:,} samples. {REMEDY}"
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
        raise RecordError(_invalid_rule(path, error)) from None
    same = len(table.rows) == len(schedule.stages) and all(map(_same, table.rows, schedule.stages))
    if not same:
        raise RecordError(
            f"The stages in {path} do not match its rule, so the file was edited or corrupted. "
            f"{REMEDY}"
        )


def _invalid_rule(path: str | os.PathLike[str], error: Exception) -> str:
    return f"{path} contains an invalid rule: {str(error).rstrip('.')}. {REMEDY}"


def _same(one: StageRow, other: StageRow) -> bool:
    """Return whether two stages are equal, except for rounding of their learning rates."""
    counts = ("samples", "batch_size", "steps", "cumulative_steps")
    rates = ("lr", "last_lr")
    return all(getattr(one, n) == getattr(other, n) for n in counts) and all(
        math.isclose(getattr(one, n), getattr(other, n), rel_tol=1e-9, abs_tol=1e-12) for n in rates
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")
