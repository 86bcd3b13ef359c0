"""Runs a function, or a program, in several processes that form a gloo group."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 150
"""After which ranks that still run are hanging."""

ABORTED = ("terminate called without an active exception", "Signal 6 (SIGABRT)")
"""Of a process that is done, about once in 60: see pytorch/pytorch#179291. The second is torchrun's
word, since two ranks that abort at once write into one another's lines."""


def run_program(
    *args: str, cwd: Path | None = None, path: str = ""
) -> subprocess.CompletedProcess[str]:
    """python with these arguments, which starts processes of its own; again where torch aborted
    one that was done, without the files that it wrote.

    Args:
        args: after "python".
        cwd: where it runs.
        path: of its own modules, before the library's.
    """
    source = str(Path(__file__).parents[1] / "src")
    given = set(cwd.iterdir()) if cwd else set()
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, *args],
            cwd=cwd,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, (path, source))),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
            },
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if not any(sign in done.stderr for sign in ABORTED):
            break
        for written in set(cwd.iterdir()) - given if cwd else ():
            shutil.rmtree(written) if written.is_dir() else written.unlink()
    return done


def forks() -> ForkServerContext:
    """Processes that are forks of one server. It has imported, once for all of them, what takes
    seconds: torch, what DistributedDataParallel imports when it is made, and the command line."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "sklearn.datasets", "largebatch.workbench.cli.main"]
    )
    return context


def run_on_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """function(*args) in each of so many processes; what it gave, in the order of the ranks.

    Raises:
        AssertionError: a rank raised, died or did not end in time; says what each of them did.
    """
    context = forks()
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(ranks):
            end, theirs = context.Pipe(duplex=False)
            store = f"file://{folder}/store"
            process = context.Process(
                target=_rank, args=(rank, ranks, store, theirs, function, args)
            )
            process.start()
            theirs.close()
            ends.append(end)
            processes.append(process)
        deadline = time.monotonic() + SECONDS
        try:
            answers = [_answer(end, max(deadline - time.monotonic(), 0.0)) for end in ends]
        finally:
            for process in processes:
                process.join(1.0)
                process.kill()
                process.join()
    failed = [f"rank {r}: {what}" for r, (sound, what) in enumerate(answers) if not sound]
    assert not failed, "\n".join(failed)
    return [what for _, what in answers]


def _answer(end: Connection, seconds: float) -> tuple[bool, Any]:
    try:
        return end.recv() if end.poll(seconds) else (False, "no answer in time")
    except EOFError:
        return False, "died"


def _rank(
    rank: int,
    ranks: int,
    store: str,
    answer: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    try:
        answer.send((True, function(*args)))
        dist.barrier()
    except Exception:
        answer.send((False, traceback.format_exc()))
    finally:
        dist.destroy_process_group()
