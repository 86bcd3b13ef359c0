"""A directory that one process holds, and what frees it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from largebatch.core.errors import CheckpointError
from largebatch.workbench.runs import lock
from largebatch.workbench.runs.lock import locked

HOLDER = (
    "import os, sys, time\n"
    "from pathlib import Path\n"
    "from largebatch.workbench.runs.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    child = os.fork() if sys.argv[2] == 'fork' else 1\n"
    "    if child:\n"
    "        print(child, flush=True)\n"
    "    time.sleep(60)\n"
)


@contextmanager
def held(directory: Path, *, how: str = "alone") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds it, and the number of its child if it forks."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), how], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        yield holder, child
    finally:
        holder.kill()
        holder.communicate()


def test_a_directory_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    with (
        held(tmp_path),
        pytest.raises(CheckpointError, match="Another run is training in"),
        locked(tmp_path, patience=0.1),
    ):
        pass
    with locked(tmp_path, patience=0.1):  # killed, it holds nothing
        pass


def test_a_child_of_a_killed_holder_does_not_hold_it(tmp_path: Path) -> None:
    with held(tmp_path, how="fork") as (holder, child):
        holder.kill()
        holder.wait()
        with locked(tmp_path, patience=0.1):
            pass
        os.kill(child, 9)


def test_a_holder_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    with held(tmp_path) as (holder, _):
        ending = threading.Timer(0.3, holder.kill)
        ending.start()
        with locked(tmp_path):
            assert holder.wait() != 0
        ending.join()


def test_it_is_free_again_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path, patience=0.0):
            pass


def test_a_system_without_locks_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with held(tmp_path), locked(tmp_path, patience=0.0):
        pass
