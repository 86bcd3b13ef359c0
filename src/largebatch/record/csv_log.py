"""Write a run's numbers to a CSV file, with one header and one row per training step."""

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
"""Names of the columns. A value that a training step lacks is an empty cell."""


class CsvLogger:
    """Write one row per training step to a CSV file. Each row is written immediately.

    `start` creates the file and its directory. An existing file is never overwritten. A resumed run
    passes `append=True`, which removes a last row that a crash truncated. Training steps that a
    resumed run repeats appear twice, and the repeated rows come last. The description of the run is
    not written to the CSV file. The logger holds the open file, so its state changes.

    >>> path = getfixture("tmp_path") / "run.csv"
    >>> logger = CsvLogger(path)
    >>> logger.start({})
    >>> logger.log({"loss": 0.5, "batch_size": 64}, step=1, samples=64)
    >>> logger.close()
    >>> print(path.read_text().splitlines()[-1])
    1,64,0.5,,,64,,,,

    Args:
        path: Path of the CSV file.
        append: Whether to append to an existing file. If the file does not exist, `start` creates
            it.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        self.path = Path(path)
        self.append = append
        self._file: FileIO | None = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Open the file, and write the header if the file is empty.

        Args:
            facts: Description of the run, which `CsvLogger` ignores.

        Raises:
            RecordError: The file exists and `append` is False, or the file has other columns.
        """
        self.close()
        header = _row(COLUMNS)
        self._file = open_lines(
            self.path,
            append=self.append,
            opening=header,
            what="a CSV file with the columns of this logger",
            again=f"lb.CsvLogger({str(self.path)!r}, append=True)",
        )
        if not self._file.tell():
            write_line(self._file, header, path=self.path)

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        """Write one row.

        Args:
            values: Finite numbers by name.
            step: Number of optimizer steps taken, this training step included.
            samples: Number of samples used over all ranks, this training step included.

        Raises:
            RecordError: The file is not open, a value has no column, or the disk is full.
        """
        if self._file is None:
            raise RecordError(f"{self.path} is not open. Call logger.start(facts) first.")
        foreign = sorted(set(values) - set(SCALARS))
        if foreign:
            raise RecordError(
                f"{self.path} has no column for {', '.join(foreign)}. Its columns are "
                f"{', '.join(COLUMNS)}. Log other values with a logger of your own (see lb.Logger)."
            )
        row = {"step": step, "samples": samples, **values}
        write_line(self._file, _row(row.get(name, "") for name in COLUMNS), path=self.path)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _row(cells: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(list(cells))
    return text.getvalue().encode()
