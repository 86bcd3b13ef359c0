"""Hold what `accelerator.py` finds in a cell, and write it as a line of JSON or a table row."""

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
    """Holds what was found in a cell.

    Args:
        status: "measured", "skipped" (too little time), "not supported", "out of memory" or
            "failed".
        reason: why the status is not "measured".
        seconds: that the whole cell took, setting up included.
        clock: of the ratios and of what is added: "wall" on a device, "cpu" on the CPU.
        ratio, null: of the candidate and of torch alone to torch alone.
        cpu_ratio, cpu_null: the same in the process's CPU time.
        bare_us, added_us: microseconds per step of torch alone, and what the candidate adds.
        rounds, steps_per_round: how often each loop ran, and its steps each time.
        bare_operations, operations: of one step.
        bare_peak_bytes, peak_bytes: most of the device's memory that a loop held in a step, with
            its model and optimizer; None on the CPU.
        load: of the machine, over the last minute.
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
    """Append one line of JSON and flush it to disk; do nothing if the path is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut else "") + json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield each entry of a results file; a truncated line is skipped."""
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
    """Return the table's first line."""
    return "".join(f"{title:<{width}}" for title, width in COLUMNS)


def row_of(result: Result) -> str:
    """Return a cell's line in the table; counts are those of torch alone and of the candidate."""
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
