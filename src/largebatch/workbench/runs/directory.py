"""Check and lock the directory in which a run is saved, before any data are loaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from largebatch.core.errors import CheckpointError
from largebatch.record import Checkpoints
from largebatch.workbench.runs.launcher import launched_rank
from largebatch.workbench.runs.lock import locked


@contextmanager
def opened(
    directory: str | os.PathLike[str] | None, *, resume: bool, keep: int, every: str | None
) -> Iterator[Checkpoints | None]:
    """Yield the checkpoints of a run and lock their directory while the context is open.

    Args:
        directory: Directory of the checkpoints; None for a run that is not saved.
        resume: Whether the directory may already hold checkpoints.
        keep: Number of checkpoints to keep.
        every: Interval between two checkpoints, as the user gave it.

    Raises:
        ValueError: `resume` or `every` was given without a directory, or `keep` is below 1.
        CheckpointError: The directory cannot be written, already holds a run, or is used by another
            run.
    """
    if directory is None:
        if resume or every is not None:
            option = "resume=True" if resume else f"checkpoint_every='{every}'"
            raise ValueError(
                f"{option} was given without a directory for checkpoints. Pass the directory: "
                "checkpoint='runs/mine'."
            )
        yield None
        return
    checkpoints = Checkpoints(directory, keep=keep)
    if launched_rank() > 0:
        yield checkpoints
        return
    another = "Pass another directory: checkpoint='other'."
    try:
        checkpoints.directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=checkpoints.directory).close()
    except OSError as error:
        raise CheckpointError(
            f"The directory {directory} cannot be written ({error.strerror}). {another}"
        ) from error
    with locked(checkpoints.directory):
        if checkpoints.paths and not resume:
            raise CheckpointError(
                f"The directory {directory} already holds a run. Resume this run: resume=True. Or "
                "start a new run in another directory: checkpoint='other'."
            )
        yield checkpoints
