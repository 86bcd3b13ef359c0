"""Create loggers from texts such as "csv=run.csv"."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from largebatch.core.errors import RecordError
from largebatch.core.moving_moments import MovingMoments
from largebatch.core.protocols import Logger
from largebatch.integrations.loggers import MlflowLogger, TensorBoardLogger, WandbLogger
from largebatch.record import CsvLogger, Logged

PLACES = {"csv": "FILE", "tensorboard": "DIR", "wandb": "DIR", "mlflow": "URI"}
"""Place to which a logger writes (file, directory or address), by the kind of logger."""

FORMS = ", ".join(f"{kind}={place}" for kind, place in PLACES.items())
"""Accepted forms of a logger text."""


TRACKED = (WandbLogger, MlflowLogger)
"""Classes of loggers that identify a run by an id."""


ANOTHER_CSV = "Pass another file: log='csv=other.csv'."


def loggers_of(
    texts: Iterable[str], *, resume: bool, record: str | os.PathLike[str] | None = None
) -> dict[str, Logger]:
    """Return a logger for each text such as "csv=run.csv"; no file is opened yet.

    Args:
        texts: Logger texts, each in one of the `FORMS`.
        resume: Whether a logger may continue an existing file.
        record: File of the run's record, which no logger may write to.

    Raises:
        ValueError: A kind is unknown, a place is missing, a text is given twice, or two loggers
            would write to one file.
        LargeBatchError: A package is missing, or a file exists or cannot be written.
    """
    loggers: dict[str, Logger] = {}
    files = set() if record is None else {Path(record).resolve()}
    for text in texts:
        if text in loggers:
            raise ValueError(
                f"The logger {text} was given twice. Pass the logger once: log='{text}'."
            )
        loggers[text] = logger = _logger(text, resume=resume)
        if isinstance(logger, CsvLogger):
            file = logger.path.resolve()
            if file in files:
                raise ValueError(
                    f"The logger {text} would write to the file of the record or of another "
                    f"logger. {ANOTHER_CSV}"
                )
            files.add(file)
    return loggers


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumableLoggers:
    """Save and restore the state of loggers, so that they continue in a resumed run.

    Args:
        named: Loggers by their text. Some loggers identify the run by an id.
        logged: Sink that passes each training step to the loggers.
    """

    named: Mapping[str, Logger]
    logged: Logged

    @property
    def ids(self) -> dict[str, str]:
        """Return the id of the run for each logger that has one, by the logger's text."""
        tracked = {n: x.run_id for n, x in self.named.items() if isinstance(x, TRACKED)}
        return {name: run_id for name, run_id in tracked.items() if run_id is not None}

    def go_on(self, ids: Mapping[str, str], moments: MovingMoments) -> None:
        """Set the averages and the run ids with which the loggers continue.

        The loggers must not be open yet.
        """
        self.logged.moments = moments
        for name, run_id in ids.items():
            logger = self.named.get(name)
            if isinstance(logger, TRACKED):
                logger.run_id = run_id


def check_file(path: Path, *, resume: bool, what: str, another: str) -> None:
    """Check that a file can be written, before any data are loaded.

    Args:
        path: File to write.
        resume: Whether the file may exist.
        what: Description of the file for the error message, such as "a record".
        another: Sentence for the error message that says what to pass instead.

    Raises:
        RecordError: The file exists or cannot be written.
    """
    try:
        if path.is_dir():
            raise RecordError(f"{path} is a directory. {another}")
        if path.exists() and not resume:
            raise RecordError(
                f"The file {path} already exists, and {what} is never overwritten. {another}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise RecordError(
            f"The file {path} cannot be written ({error.strerror}). {another}"
        ) from error


def _logger(text: str, *, resume: bool) -> Logger:
    kind, _, place = text.partition("=")
    if kind not in PLACES:
        close = difflib.get_close_matches(kind, PLACES, n=1)
        raise ValueError(
            f"There is no logger {kind!r}."
            + (f" Did you mean {close[0]!r}?" if close else "")
            + f" The forms of a logger are {FORMS}. Pass log='csv=run.csv'."
        )
    if not place:
        raise ValueError(
            f"The logger {kind!r} needs a place, but {text!r} was given. Pass "
            f"log='{kind}={PLACES[kind]}'."
        )
    if kind == "csv":
        check_file(Path(place), resume=resume, what="a logger's file", another=ANOTHER_CSV)
        return CsvLogger(place, append=resume)
    if kind == "tensorboard":
        return TensorBoardLogger(place, append=resume)
    return WandbLogger(place) if kind == "wandb" else MlflowLogger(place)
