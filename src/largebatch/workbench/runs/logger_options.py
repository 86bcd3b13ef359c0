"""Loggers by name: what `--logger KIND=PLACE` means."""

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
"""Kind -> what its place is."""

FORMS = ", ".join(f"{kind}={place}" for kind, place in PLACES.items())
"""What may be given."""


TRACKED = (WandbLogger, MlflowLogger)
"""Loggers that know a run by its id."""


ANOTHER_CSV = "Name another file: --logger csv=other.csv"


def loggers_of(
    texts: Iterable[str], *, resume: bool, record: str | os.PathLike[str] | None = None
) -> dict[str, Logger]:
    """The loggers of texts such as "csv=run.csv", under these texts; nothing is opened yet.

    Args:
        texts: each of one of the FORMS.
        resume: whether they may go on with what is there.
        record: the run's record, into which no logger may write.

    Raises:
        ValueError: an unknown kind, no place, one given twice, or two writers of one file.
        LargeBatchError: a package that is missing, or a place that exists or cannot be written.
    """
    loggers: dict[str, Logger] = {}
    files = set() if record is None else {Path(record).resolve()}
    for text in texts:
        if text in loggers:
            raise ValueError(f"--logger {text} is given twice; once is enough.")
        loggers[text] = logger = _logger(text, resume=resume)
        if isinstance(logger, CsvLogger):
            file = logger.path.resolve()
            if file in files:
                raise ValueError(
                    f"--logger {text} would write into the file of the record or of another "
                    f"logger. {ANOTHER_CSV}"
                )
            files.add(file)
    return loggers


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumableLoggers:
    """The part of the loggers that a checkpoint holds, so that a resumed run continues in them.

    Args:
        named: those that may know their run by an id, by name.
        logged: the sink that feeds them.
    """

    named: Mapping[str, Logger]
    logged: Logged

    @property
    def ids(self) -> dict[str, str]:
        """Name -> id of the run."""
        tracked = {n: x.run_id for n, x in self.named.items() if isinstance(x, TRACKED)}
        return {name: run_id for name, run_id in tracked.items() if run_id is not None}

    def go_on(self, ids: Mapping[str, str], moments: MovingMoments) -> None:
        """Lets loggers that are not open yet go on with these runs and averages."""
        self.logged.moments = moments
        for name, run_id in ids.items():
            logger = self.named.get(name)
            if isinstance(logger, TRACKED):
                logger.run_id = run_id


def check_file(path: Path, *, resume: bool, what: str, another: str) -> None:
    """Refuses, before data is loaded, a file that could not be written.

    Args:
        path: the file.
        resume: whether it may exist.
        what: how errors call it.
        another: what to do instead.

    Raises:
        RecordError: it exists, or cannot be written.
    """
    try:
        if path.is_dir():
            raise RecordError(f"{path} is a directory. {another}")
        if path.exists() and not resume:
            raise RecordError(f"{path} exists and {what} is never overwritten. {another}")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise RecordError(f"{path} cannot be written ({error.strerror}). {another}") from error


def _logger(text: str, *, resume: bool) -> Logger:
    kind, _, place = text.partition("=")
    if kind not in PLACES:
        close = difflib.get_close_matches(kind, PLACES, n=1)
        raise ValueError(
            f"There is no logger {kind!r}."
            + (f" Did you mean {close[0]!r}?" if close else "")
            + f" Known: {FORMS}. Example: --logger csv=run.csv"
        )
    if not place:
        raise ValueError(
            f"The logger {kind!r} needs a place, as in --logger {kind}={PLACES[kind]}; "
            f"got {text!r}."
        )
    if kind == "csv":
        check_file(Path(place), resume=resume, what="a logger's file", another=ANOTHER_CSV)
        return CsvLogger(place, append=resume)
    if kind == "tensorboard":
        return TensorBoardLogger(place, append=resume)
    return WandbLogger(place) if kind == "wandb" else MlflowLogger(place)
