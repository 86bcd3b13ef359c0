"""Compare the time to write and read a line of the record with `json` alone on the same values.

    python benchmarks/record.py [--rounds 60]

The line of one step holds the measurement and the decision in about 600 characters. The goal is 25
microseconds per step on a quiet machine, which is 2.5 % of the time of a training run with 1000
steps per second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from _timing import Run, interleave
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, GradientMoments, Measurement
from largebatch.record import JsonlRecord, read_record

LINES = 500

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


def ours(folder: Path) -> Run:
    """Return a function that writes lines with the library."""
    record = JsonlRecord(folder / "record.jsonl")
    record.start({})

    def run() -> None:
        for _ in range(LINES):
            record.write(SEEN, DECISION)

    return run


def by_hand(path: Path, plain: object) -> Run:
    """Return a function that writes the same line from an existing dictionary."""
    file = open(path, "ab", buffering=0)  # noqa: SIM115 (open until the program ends)

    def run() -> None:
        for _ in range(LINES):
            file.write((json.dumps(plain) + "\n").encode())

    return run


def written(folder: Path) -> Path:
    """Write a record of consecutive steps and return its path."""
    record = JsonlRecord(folder / "ordered.jsonl")
    record.start({})
    for step in range(LINES):
        record.write(replace(SEEN, step=step, samples=512 * step), DECISION)
    record.close()
    return record.path


def main() -> None:
    """Print a table for writing and a table for reading."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = written(folder)
        plain = json.loads(path.read_text().splitlines()[1])

        def parse() -> None:
            for line in path.read_text().splitlines():
                json.loads(line)

        writing: dict[str, Run] = {
            "json": by_hand(folder / "by_hand.jsonl", plain),
            "null": by_hand(folder / "null.jsonl", plain),
            "JsonlRecord.write": ours(folder),
        }
        reading: dict[str, Run] = {
            "json": parse,
            "null": parse,
            "read_record": lambda: read_record(path) and None,
        }
        for title, candidates in (("writing", writing), ("reading", reading)):
            times = interleave(candidates, rounds=rounds)
            print(times.table(title, to="json", per=LINES, unit="step"))


if __name__ == "__main__":
    main()
