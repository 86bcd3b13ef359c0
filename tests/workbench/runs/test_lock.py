"""Test that one process can lock a directory, and when the lock is released."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from distributed import forks
from largebatch.core.errors import CheckpointError
from largebatch.workbench.runs import lock
from largebatch.workbench.runs.lock import locked


def hold(directory: Path, how: str, told: Connection) -> None:
    """Lock the directory until this process is ended; the process may have a child by then."""
    with locked(directory):
        child = os.fork() if how == "fork" else 1
        if child:
            told.send(child)
        time.sleep(60)


@contextmanager
def held(directory: Path, *, how: str = "alone") -> Iterator[tuple[Any, int]]:
    """Start a process that locks the directory; return the process and the number of its child."""
    told, end = forks().Pipe(duplex=False)
    holder = forks().Process(target=hold, args=(directory, how, end))
    holder.start()
    end.close()
    child = told.recv()
    try:
        yield holder, child
    finally:
        holder.kill()
        holder.join()


def test_a_directory_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    with (
        held(tmp_path),
        pytest.raises(CheckpointError, match="Another run is saving its checkpoints in"),
        locked(tmp_path, patience=0.1),
    ):
        pass
    with locked(tmp_path, patience=0.1):  # killed, it holds nothing
        pass


def test_a_child_of_a_killed_holder_does_not_hold_it(tmp_path: Path) -> None:
    with held(tmp_path, how="fork") as (holder, child):
        holder.kill()
        holder.join()
        with locked(tmp_path, patience=0.1):
            pass
        os.kill(child, 9)


def test_a_holder_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    with held(tmp_path) as (holder, _):
        ending = threading.Timer(0.3, holder.kill)
        ending.start()
        with locked(tmp_path):
            holder.join()
            assert holder.exitcode != 0
        ending.join()


def test_a_locked_directory_is_free_again_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path, patience=0.0):
            pass


def test_training_works_on_a_system_without_file_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with held(tmp_path), locked(tmp_path, patience=0.0):
        pass
