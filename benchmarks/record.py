"""What recording a step costs: encoding and writing its line, against `json.dumps` and a write of
an equal dictionary made by hand.

Both run in turn, so that what slows the machine slows both; the ratio is that of neighbours. The
null is the hand-made line against itself. The goal is 25 microseconds a step on a quiet machine:
training at 1000 steps a second would lose 2.5 % to it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, GradientMoments, Measurement
from largebatch.record import JsonlRecord, read_record

ROUNDS, LINES = 60, 500

SEEN = Measurement(
    step=10,
    samples=5120,
    base_steps=31.4159265,
    batch_size=512,
    base_batch_size=64,
    ranks=2,
    base_lr=0.1,
    loss=1.2345678901,
    batch_sqnorm=2.123456789,
    moments=GradientMoments(
        batch_size=512, parts=8, batch_sqnorm=2.123456789, variance=901.2345678
    ),
    dataset_size=60_000,
    budget=Budget(samples=5_000_000),
)
DECISION = Decision(
    next_batch_size=512,
    base_steps=6.54321,
    lr_multiplier=6.54321,
    measure_next=frozenset({"moments"}),
    reason="gain 6.543 of 8",
)


def by_hand(folder: Path) -> Callable[[], None]:
    """Writes the same line from a dictionary that exists already."""
    record = JsonlRecord(folder / "line.jsonl")
    record.start({})
    record.write(SEEN, DECISION)
    record.close()
    plain = json.loads(record.path.read_text().splitlines()[1])
    file = open(folder / "by_hand.jsonl", "ab", buffering=0)  # noqa: SIM115 (open to the end)
    return lambda: file.write((json.dumps(plain) + "\n").encode()) and None


def microseconds(write: Callable[[], None]) -> float:
    """The time of one line, as the mean over `LINES` of them."""
    start = time.perf_counter()
    for _ in range(LINES):
        write()
    return (time.perf_counter() - start) / LINES * 1e6


def row(name: str, values: list[float]) -> str:
    """Median and the middle half of the values."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{name:34}{middle:8.2f}   [{low:.2f}, {high:.2f}]"


def ordered_record(folder: Path) -> Path:
    """A record of 2000 steps in order, to read."""
    record = JsonlRecord(folder / "ordered.jsonl")
    record.start({})
    for step in range(2000):
        record.write(replace(SEEN, step=step, samples=512 * step), DECISION)
    record.close()
    return record.path


def main() -> None:
    """Prints median and middle half of each time and of the paired ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = JsonlRecord(folder / "record.jsonl")
        record.start({})
        bare = by_hand(folder)
        ours, first, second = [], [], []
        for _ in range(ROUNDS):
            first.append(microseconds(bare))
            ours.append(microseconds(lambda: record.write(SEEN, DECISION)))
            second.append(microseconds(bare))
        record.close()
        start = time.perf_counter()
        read = len(read_record(ordered_record(folder)).steps)
        reading = (time.perf_counter() - start) / read * 1e6
    ratios = [2 * o / (a + b) for o, a, b in zip(ours, first, second, strict=True)]
    null = [b / a for a, b in zip(first, second, strict=True)]
    print(f"{ROUNDS} rounds of {LINES} lines; median [middle half]")
    print(row("JsonlRecord.write, microseconds", ours))
    print(row("json.dumps + write, microseconds", first + second))
    print(row("paired ratio", ratios))
    print(row("null: by hand against by hand", null))
    print(f"{'read_record, microseconds a step':34}{reading:8.2f}")


if __name__ == "__main__":
    main()
