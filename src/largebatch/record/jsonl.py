"""A run's record as a file of JSON lines: a header, then what was seen and decided in each step.

    {"header":{"base_batch_size":64, ..., "version":"0.1.0"}}
    {"seen":{"step":0, ...},"decision":{"next_batch_size":512, ...}}

A line is one write of the operating system, so a crash leaves all lines whole but the last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from largebatch.core.codec import encode
from largebatch.core.decision import Decision
from largebatch.core.errors import RecordError
from largebatch.core.measurement import Measurement
from largebatch.core.version import __version__
from largebatch.record.lines import open_lines, write_line

_CHANGING = frozenset({"version", "ranks", "batch_size"})
"""Facts that may differ between a run and its resumption."""

_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


class JsonlRecord:
    """Writes one line a step to a file; holds the open file, so it changes state.

    The file is made by `start`, with its folder. It is never overwritten: a resumed run goes on
    with `append=True`, which drops a last line that a crash cut and adds a second header;
    `read_record` then drops the steps that the resumed run took again.

    >>> from largebatch.record import read_record
    >>> path = getfixture("tmp_path") / "run" / "record.jsonl"
    >>> record = JsonlRecord(path)
    >>> record.start({"rule": "AdaScale", "base_batch_size": 64})
    >>> record.close()
    >>> read_record(path).header["rule"]
    'AdaScale'

    Args:
        path: the file.
        append: whether to go on with a record that exists; a missing one is made.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        self.path = Path(path)
        self.append = append
        self._file: FileIO | None = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Opens the file and writes the header: the facts and the version of this package.

        Raises:
            RecordError: the file exists and `append` is False, it is not a record, or it is the
                record of another run.
        """
        plain = encode(facts)
        if self.append and self.path.is_file():
            self._check_same_run(plain)
        self._file = open_lines(
            self.path,
            append=self.append,
            opening=b'{"header":',
            what="a record",
            again=f"lb.JsonlRecord({str(self.path)!r}, append=True)",
        )
        self._write_line({"header": {**plain, "version": __version__}})

    def write(self, seen: Measurement, decision: Decision) -> None:
        """Adds one step.

        Raises:
            RecordError: the record is not open, or the disk is full.
        """
        self._write_line({"seen": encode(seen), "decision": encode(decision)})

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _check_same_run(self, facts: Mapping[str, Any]) -> None:
        """Refuses to go on with a record whose header, as far as it is whole, says other things."""
        try:
            with open(self.path, "rb") as file:
                there = json.loads(file.readline())["header"]
            common = (there.keys() & facts.keys()) - _CHANGING
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return  # not a whole header: `open_lines` tells, or begins the file anew
        for name in sorted(common):
            if there[name] != facts[name]:
                raise RecordError(
                    f"{self.path} is of another run: its {name} is {there[name]!s:.80}, here it "
                    f"is {facts[name]!s:.80}. Name another file."
                )

    def _write_line(self, plain: dict[str, Any]) -> None:
        if self._file is None:
            raise RecordError(
                f"The record {self.path} is not open. Call record.start(facts) first."
            )
        write_line(self._file, (_JSON.encode(plain) + "\n").encode(), path=self.path)
