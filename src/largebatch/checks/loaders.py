"""What a DataLoader of the user's does beside a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from largebatch.act.loader import BatchLoader
from largebatch.act.passes import known_length
from largebatch.checks.finding import Finding
from largebatch.measure.random_state import keep_random_state, seed_generators


def check_loader(batches: BatchLoader, *, accumulation: int, ranks: int) -> list[Finding]:
    """A DataLoader's samples left out, its batch beside the one asked for, its workers' seeds."""
    loader = batches.source
    if not isinstance(loader, DataLoader):
        return []
    found = []
    sampler = loader.batch_sampler
    if type(sampler) is BatchSampler and accumulation:
        size = sampler.batch_size
        taken = accumulation * size * ranks
        if taken != batches.batch_size:
            found.append(_other_batch(batches.batch_size, taken, size=size, ranks=ranks))
        found += _left_out(sampler)
    return found + _worker_seeds(loader)


def _other_batch(wish: int, taken: int, *, size: int, ranks: int) -> Finding:
    return Finding(
        name="batch",
        level="warning",
        seen=f"A batch of {wish} samples was asked for, and a step takes {taken}: whole "
        f"micro-batches of {size} on {ranks} rank(s).",
        why="The scale, and with it rate and clock, follow from what is taken.",
        remedy=f"lb.BatchLoader(loader, batch_size={taken}), or a DataLoader whose batch_size "
        "divides the batch.",
    )


def _left_out(batches: BatchSampler) -> list[Finding]:
    samples, size = known_length(batches.sampler), batches.batch_size
    if samples is None or not batches.drop_last or not samples % size:
        return []
    always = isinstance(batches.sampler, SequentialSampler)
    return [
        Finding(
            name="drop_last",
            level="warning" if always else "note",
            seen=f"drop_last leaves {samples % size} of {samples} samples "
            f"out of every pass{', always the same ones' if always else ''}.",
            why="A short micro-batch needs no special care: it is weighted by its samples.",
            remedy=f"DataLoader(dataset, batch_size={size}, drop_last=False)",
        )
    ]


def _worker_seeds(loader: DataLoader[Any]) -> list[Finding]:
    """Whether `worker_init_fn` gives two workers the same generator, whatever torch had seeded."""
    if loader.num_workers < 2 or loader.worker_init_fn is None:
        return []
    states = []
    with keep_random_state():
        for worker in range(2):
            seed_generators(worker + 1)
            try:
                loader.worker_init_fn(worker)
            except Exception:
                return []  # it needs a worker around it
            states.append((np.random.random(), float(torch.rand(()))))
    same = [n for n, a, b in zip(("NumPy", "torch"), *states, strict=True) if a == b]
    if not same:
        return []
    return [
        Finding(
            name="workers' seeds",
            level="warning",
            seen=f"worker_init_fn gives {loader.num_workers} workers the same {same[0]} seed.",
            why="Their random augmentations are the same, so samples of a batch are more alike "
            "than they should be.",
            remedy="Leave worker_init_fn out: torch seeds each worker differently, NumPy included.",
        )
    ]
