"""Start ranks, change the batch size by a rule and print verdicts for the soak programs."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement

CONTEXT = multiprocessing.get_context("fork")
TIMEOUT = timedelta(seconds=20)
"""Timeout of a collective operation. If a rank dies, the other ranks end after this time."""


def start_ranks(
    function: Callable[..., None],
    ranks: int,
    store: Path,
    *args: Any,
    timeout: timedelta = TIMEOUT,
) -> list[Any]:
    """Start function(*args) in `ranks` processes that form a gloo process group.

    The processes are forked, so they do not import torch again.
    """
    store.unlink(missing_ok=True)
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, ranks, store, timeout, function, args))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def _rank(
    rank: int,
    ranks: int,
    store: Path,
    timeout: timedelta,
    function: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    os.environ.update(
        GLOO_SOCKET_IFNAME="lo", RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    log = os.environ.get("SOAK_LOG")
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, sys.stderr.fileno())  # hides the traceback that a killed peer causes
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timeout
        )
    function(*args)
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def run_ranks(function: Callable[..., None], ranks: int, store: Path, *args: Any) -> None:
    """Run function(*args) in `ranks` processes and wait until all of them end.

    Raises:
        SystemExit: A rank failed.
    """
    processes = start_ranks(function, ranks, store, *args)
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        codes = [process.exitcode for process in processes]
        raise SystemExit(f"A rank failed. The exit codes of the ranks are {codes}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """Set the next batch size near a fraction of the measured noise scale.

    The batch size is a power of two times the base batch size. A run in which a single bit differs
    soon has other batch sizes.

    Args:
        fraction: Fraction of the noise scale.
        largest: Largest batch size, in samples.
        keep: Weight of the old value in the running averages, in [0, 1).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    changes: ClassVar[frozenset[str]] = frozenset({"batch"})
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()
    fraction: float = 0.5
    largest: int = 256
    keep: float = 0.9

    def init(self) -> tuple[float, float]:
        return (0.0, 0.0)

    def update(
        self, state: tuple[float, float], seen: Measurement, proposed: Decision
    ) -> tuple[tuple[float, float], Decision]:
        if seen.moments is not None:
            now = (seen.moments.variance, seen.moments.sqnorm)
            state = tuple(  # type: ignore[assignment]
                self.keep * old + (1.0 - self.keep) * new
                for old, new in zip(state, now, strict=True)
            )
        variance, sqnorm = state
        wish = self.fraction * variance / sqnorm if sqnorm > 0.0 else float(self.largest)
        size = seen.base_batch_size
        while size * 2 <= min(wish, self.largest):
            size *= 2
        proposed = replace(proposed, measure_next=proposed.measure_next | self.needs)
        return state, proposed.resized(size, because=f"noise scale near {wish / self.fraction:.4g}")


def verdict(sound: bool, claim: str) -> None:
    """Print the claim and end the program, with exit code 1 if the claim does not hold."""
    print(f"{'holds' if sound else 'FAILS'}: {claim}")
    raise SystemExit(0 if sound else 1)
