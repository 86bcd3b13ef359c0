"""A directory for one process at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from largebatch.core.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "run.lock"
"""The file that is locked. It stays: another process may have it open already."""


@contextmanager
def locked(directory: Path, *, patience: float = 3.0) -> Iterator[None]:
    """Keep other processes out of a directory while the context is open.

    The system frees the lock with the end of the process, whatever ended it. It is POSIX's lock and
    not `flock`, which the workers of a data loader would inherit and hold for a while after their
    killed parent. A system or a disk without such locks does without.

    Args:
        directory: one that exists.
        patience: seconds to wait for a process that is about to end.

    Raises:
        CheckpointError: another process is in it.
        OSError: nothing can be written there.
    """
    with open(directory / NAME, "a", encoding="utf-8") as file:
        give_up = time.monotonic() + patience
        while _taken(file):
            if time.monotonic() >= give_up:
                raise CheckpointError(
                    f"Another run is training in {directory}, and each would remove the other's "
                    "checkpoints. Wait for its end or stop it, or name another directory: "
                    "--checkpoint other"
                )
            time.sleep(0.05)
        yield


def _taken(file: IO[str]) -> bool:
    """Whether another process holds the lock; else it is ours until the file is closed."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows both
        return True
    except OSError:
        return False
    return False
