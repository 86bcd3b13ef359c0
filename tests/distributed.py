"""Runs a function on several processes joined by gloo and hands back what each returned."""

from __future__ import annotations

import datetime
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(
    function: Callable[..., Any], *args: Any, ranks: int = 2, timeout: float = 120.0
) -> list[Any]:
    """`function(rank, *args)` on each rank; the results in the order of the ranks.

    Args:
        function: of a module, so that a new process can import it; what it returns is pickled.
        timeout: seconds after which every process is ended; one collective gets a third of them.

    Raises:
        RuntimeError: with every traceback, if a rank raised or did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn = mp.get_context("spawn")
        processes = [
            spawn.Process(target=_work, args=(rank, ranks, folder, timeout, function, args))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0.0))
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        answers = [_answer(Path(folder, str(rank))) for rank in range(ranks)]
    errors = [f"rank {rank}: {text}" for rank, (fine, text) in enumerate(answers) if not fine]
    if errors:
        raise RuntimeError("\n".join(errors))
    return [value for _, value in answers]


def _answer(path: Path) -> tuple[bool, Any]:
    if not path.exists():
        return False, "ended without an answer, or was still running"
    answer: tuple[bool, Any] = pickle.loads(path.read_bytes())
    return answer


def _work(
    rank: int,
    ranks: int,
    folder: str,
    timeout: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=ranks,
            timeout=datetime.timedelta(seconds=timeout / 3),
        )
        answer = (True, function(rank, *args))
    except BaseException:
        answer = (False, traceback.format_exc())
    Path(folder, f"{rank}.part").write_bytes(pickle.dumps(answer))
    Path(folder, f"{rank}.part").rename(Path(folder, str(rank)))
    if dist.is_initialized():
        dist.destroy_process_group()
