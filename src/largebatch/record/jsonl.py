"""Write a run's record as JSON lines: one header, then one line per training step.

    {"header":{"base_batch_size":64, ..., "version":"0.1.0"}}
    {"seen":{"step":0, ...},"decision":{"next_batch_size":512, ...}}

Each line is one write call of the operating system, so a crash can truncate only the last line.
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
"""Names of the facts that may differ between a run and its resumption."""

_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


class JsonlRecord:
    """Write one line per training step to a file of JSON lines.

    `start` creates the file and its directory. An existing file is never overwritten. A resumed run
    passes `append=True`, which removes a last line that a crash truncated and adds a second header.
    `read_record` then leaves out the earlier version of training steps that the resumed run
    repeated. The record holds the open file, so its state changes.

    >>> from largebatch.record import read_record
    >>> path = getfixture("tmp_path") / "run" / "record.jsonl"
    >>> record = JsonlRecord(path)
    >>> record.start({"rule": "AdaScale", "base_batch_size": 64})
    >>> record.close()
    >>> read_record(path).header["rule"]
    'AdaScale'

    Args:
        path: Path of the file.
        append: Whether to append to an existing record. If the file does not exist, `start` creates
            it.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        self.path = Path(path)
        self.append = append
        self._file: FileIO | None = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Open the file and write the header: the facts and the version of largebatch.

        Args:
            facts: Settings of the run by name, as JSON values.

        Raises:
            RecordError: The file exists and `append` is False, the file is not a record, or it is
                the record of another run.
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
        """Write one training step.

        Args:
            seen: Measurement of the training step.
            decision: Decision that the rule made from the measurement.

        Raises:
            RecordError: The record is not open, or the disk is full.
        """
        self._write_line({"seen": encode(seen), "decision": encode(decision)})

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _check_same_run(self, facts: Mapping[str, Any]) -> None:
        """Raise an error if the existing record has a header with other settings."""
        try:
            with open(self.path, "rb") as file:
                there = json.loads(file.readline())["header"]
            common = (there.keys() & facts.keys()) - _CHANGING
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return  # the header is incomplete: `open_lines` raises, or starts the file again
        for name in sorted(common):
            if there[name] != facts[name]:
                raise RecordError(
                    f"The file {self.path} is the record of another run: its {name} is "
                    f"{there[name]!s:.80}, but this run has {facts[name]!s:.80}. Pass another "
                    "file: lb.JsonlRecord('other.jsonl')."
                )

    def _write_line(self, plain: dict[str, Any]) -> None:
        if self._file is None:
            raise RecordError(
                f"The record {self.path} is not open. Call record.start(facts) first."
            )
        write_line(self._file, (_JSON.encode(plain) + "\n").encode(), path=self.path)
