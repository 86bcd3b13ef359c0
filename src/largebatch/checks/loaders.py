"""Check a user's own DataLoader: its batch sizes, samples left out, and worker seeds."""

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
    """Check a DataLoader for another batch size than requested, samples left out, and equal worker
    seeds.
    """
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
        seen=f"batch_size={wish} was given, but each step takes {taken} samples: whole "
        f"micro-batches of {size} samples on {ranks} rank(s).",
        why="The scale, the learning rate and the number of base steps all depend on the number of "
        "samples in a step.",
        remedy=f"Use lb.BatchLoader(loader, batch_size={taken}), or a DataLoader whose batch_size "
        "divides the batch size.",
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
            seen=f"drop_last=True leaves out {samples % size} of {samples} samples in every pass"
            f"{', always the same samples' if always else ''}.",
            why="drop_last is not needed, because a short micro-batch is weighted by its number of "
            "samples.",
            remedy=f"Use DataLoader(dataset, batch_size={size}, drop_last=False).",
        )
    ]


def _worker_seeds(loader: DataLoader[Any]) -> list[Finding]:
    """Find a `worker_init_fn` that gives two workers the same random seed.

    A `worker_init_fn` with a fixed seed overrides the different seeds that torch gives the workers.
    """
    if loader.num_workers < 2 or loader.worker_init_fn is None:
        return []
    states = []
    with keep_random_state():
        for worker in range(2):
            seed_generators(worker + 1)
            try:
                loader.worker_init_fn(worker)
            except Exception:
                return []  # the function can run only inside a worker
            states.append((np.random.random(), float(torch.rand(()))))
    same = [n for n, a, b in zip(("NumPy", "torch"), *states, strict=True) if a == b]
    if not same:
        return []
    return [
        Finding(
            name="workers' seeds",
            level="warning",
            seen=f"worker_init_fn gives all {loader.num_workers} workers the same {same[0]} seed.",
            why="The workers then draw the same random augmentations, so the samples of a batch "
            "are too similar.",
            remedy="Remove worker_init_fn: torch seeds each worker differently, also for NumPy.",
        )
    ]
