"""The directory in which a run is saved: checked before data is loaded, and the run's alone."""

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
    """The checkpoints of a run, which no other run may touch within the block.

    Args:
        directory: where; None for a run that is not saved.
        resume: whether it may hold checkpoints already.
        keep: how many of them are kept.
        every: an interval, as it was given; it means nothing without a directory.

    Raises:
        ValueError: an option that needs a directory, or a bad `keep`.
        CheckpointError: it cannot be written, holds a run already, or another run trains in it.
    """
    if directory is None:
        if resume or every is not None:
            option = "--resume" if resume else f"--checkpoint-every {every}"
            raise ValueError(
                f"{option} is about a directory of checkpoints; name it: --checkpoint runs/mine"
            )
        yield None
        return
    checkpoints = Checkpoints(directory, keep=keep)
    if launched_rank() > 0:
        yield checkpoints
        return
    another = "Name another directory: --checkpoint other"
    try:
        checkpoints.directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=checkpoints.directory).close()
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be written ({error.strerror}). {another}"
        ) from error
    with locked(checkpoints.directory):
        if checkpoints.paths and not resume:
            raise CheckpointError(
                f"{directory} holds a run already. Go on with it: --resume. {another}"
            )
        yield checkpoints
