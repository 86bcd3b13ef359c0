"""Hold the result of a cell of `accelerator.py`, and write it as a JSON line or a table row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _operations import Operations
from _timing import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Hold the result of a cell.

    Args:
        cell: Name of the cell.
        status: "measured", "skipped" (not enough time), "not supported", "out of memory" or
            "failed".
        reason: Reason why the cell was not measured.
        seconds: Duration of the whole cell, including the set-up.
        clock: Kind of the times: "wall" on a GPU, "cpu" on the CPU.
        ratio: Time of the candidate divided by the time of torch alone.
        null: Time of a second copy of torch alone divided by the time of torch alone.
        cpu_ratio: CPU time of the candidate divided by the CPU time of torch alone.
        cpu_null: CPU time of a second copy of torch alone divided by that of torch alone.
        bare_us: Microseconds per step of torch alone.
        added_us: Additional microseconds per step of the candidate.
        rounds: Number of runs of each loop.
        steps_per_round: Number of steps in one run of a loop.
        bare_operations: Operations in one step of torch alone.
        operations: Operations in one step of the candidate.
        bare_peak_bytes: Peak device memory in one step of torch alone, including model and
            optimizer; None on the CPU.
        peak_bytes: Peak device memory in one step of the candidate, including model and optimizer;
            None on the CPU.
        load: Load average of the machine over the last minute.
    """

    cell: str
    status: str
    reason: str | None = None
    seconds: float = 0.0
    clock: str | None = None
    ratio: Interval | None = None
    null: Interval | None = None
    cpu_ratio: Interval | None = None
    cpu_null: Interval | None = None
    bare_us: Interval | None = None
    added_us: Interval | None = None
    rounds: int = 0
    steps_per_round: int = 0
    bare_operations: Operations | None = None
    operations: Operations | None = None
    bare_peak_bytes: int | None = None
    peak_bytes: int | None = None
    load: float | None = None


def append_line(path: Path | None, entry: dict[str, Any]) -> None:
    """Append one JSON line and flush the file to disk; do nothing if the path is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut else "") + json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield each entry of a results file, without truncated lines."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


COLUMNS = (
    *(("cell", 30), ("time / bare", 22), ("null", 22), ("added us per step", 28)),
    *(("launches", 16), ("waits", 10), ("reads", 12), ("to device", 10), ("ATen", 16)),
    ("peak MiB", 16),
)


def heading() -> str:
    """Return the heading of the table."""
    return "".join(f"{title:<{width}}" for title, width in COLUMNS)


def row_of(result: Result) -> str:
    """Return the table row of a cell, with the counts of torch alone and of the candidate."""
    if result.status != "measured":
        return f"{result.cell:<30}{result.status}: {result.reason}"
    before, after = result.bare_operations, result.operations
    assert before is not None
    assert after is not None
    intervals = [(result.ratio, 3), (result.null, 3), (result.added_us, 1)]
    shown = [interval.shown(digits) for interval, digits in intervals if interval is not None]

    def pair(one: float | None, other: float | None) -> str:
        return "-" if one is None or other is None else f"{one:.0f} > {other:.0f}"

    peaks = [None if p is None else p / 2**20 for p in (result.bare_peak_bytes, result.peak_bytes)]
    texts = (
        *(result.cell, *shown),
        pair(before.launches, after.launches), pair(before.waits, after.waits),
        pair(before.scalars_read, after.scalars_read), pair(before.to_device, after.to_device),
        *(pair(before.aten, after.aten), pair(*peaks)),
    )  # fmt: skip
    return "".join(f"{text:<{w}}" for text, (_, w) in zip(texts, COLUMNS, strict=True))
