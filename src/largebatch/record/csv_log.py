"""A run's numbers as a CSV file: one header, one row a step."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from largebatch.core.errors import RecordError
from largebatch.core.scalars import SCALARS
from largebatch.record.lines import open_lines, write_line

COLUMNS = ("step", "samples", *SCALARS)
"""The header; a value that a step lacks is an empty cell."""


class CsvLogger:
    """Writes a row for each step to a file, at once; holds the open file, so it changes state.

    The file is made by `start`, with its folder, and never overwritten: a resumed run goes on with
    `append=True`, which drops a last row that a crash cut. Steps that a resumed run takes again
    then stand twice, the later ones last. What describes the run is not in it.

    >>> path = getfixture("tmp_path") / "run.csv"
    >>> logger = CsvLogger(path)
    >>> logger.start({})
    >>> logger.log({"loss": 0.5, "batch_size": 64}, step=1, samples=64)
    >>> logger.close()
    >>> print(path.read_text().splitlines()[-1])
    1,64,0.5,,,64,,,,

    Args:
        path: the file.
        append: whether to go on with a file that exists; a missing one is made.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        self.path = Path(path)
        self.append = append
        self._file: FileIO | None = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Opens the file and writes the header, unless it is there.

        Raises:
            RecordError: the file exists and `append` is False, or it has other columns.
        """
        self.close()
        header = _row(COLUMNS)
        self._file = open_lines(
            self.path,
            append=self.append,
            opening=header,
            what="a CSV file of these columns",
            again=f"lb.CsvLogger({str(self.path)!r}, append=True)",
        )
        if not self._file.tell():
            write_line(self._file, header, path=self.path)

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        """Adds one row.

        Raises:
            RecordError: the file is not open, a value has no column, or the disk is full.
        """
        if self._file is None:
            raise RecordError(f"{self.path} is not open. Call logger.start(facts) first.")
        foreign = sorted(set(values) - set(SCALARS))
        if foreign:
            raise RecordError(
                f"{self.path} has no column for {', '.join(foreign)}; it has {','.join(COLUMNS)}. "
                "Give other values to a logger of your own, see lb.Logger."
            )
        row = {"step": step, "samples": samples, **values}
        write_line(self._file, _row(row.get(name, "") for name in COLUMNS), path=self.path)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _row(cells: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(list(cells))
    return text.getvalue().encode()
