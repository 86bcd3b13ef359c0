"""Lock a directory so that only one process uses it at a time."""

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
"""Name of the lock file. The lock file is never deleted, because another process may have the lock
file open.
"""


@contextmanager
def locked(directory: Path, *, patience: float = 3.0) -> Iterator[None]:
    """Keep other processes out of a directory while the context is open.

    The operating system releases the lock when the process ends, even if the process is killed. The
    lock is a POSIX lock and not `flock`. Data-loader workers would inherit a `flock` and hold it
    for a while after their parent process was killed. On a system or a disk without POSIX locks,
    the directory is not locked.

    Args:
        directory: Existing directory.
        patience: Number of seconds to wait for a process that is about to end.

    Raises:
        CheckpointError: Another process uses the directory.
        OSError: The directory cannot be written.
    """
    with open(directory / NAME, "a", encoding="utf-8") as file:
        give_up = time.monotonic() + patience
        while _taken(file):
            if time.monotonic() >= give_up:
                raise CheckpointError(
                    f"Another run is saving its checkpoints in the directory {directory}, and each "
                    "run would remove the other's checkpoints. Wait until the other run ends, or "
                    "pass another directory: checkpoint='other'."
                )
            time.sleep(0.05)
        yield


def _taken(file: IO[str]) -> bool:
    """Return whether another process holds the lock; otherwise lock the file until it is closed."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows both errors for a lock that is held.
        return True
    except OSError:
        return False
    return False
