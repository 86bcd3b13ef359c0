"""Count the samples that a `DataLoader` gives one rank in one pass, from its samplers."""

from __future__ import annotations

import copy
from collections.abc import Sequence, Sized
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset

from largebatch.measure.random_state import keep_random_state


def samples_of_pass(loader: Any, *, most: int | None = None) -> int | None:
    """Return the number of samples that a loader gives this rank in one pass; None if unknown.

        drop_last:  floor(n / b) * b,    else  n      n: len(sampler), b: batch_size

    A user-defined batch sampler may make batches of unequal size. A copy of the batch sampler is
    therefore iterated once, so that the sampler's random generators and the global generators do
    not change. The number is unknown for an `IterableDataset`, a loader with `batch_size=None`, a
    sampler without a length, and anything that is not a `DataLoader`.

    >>> loader = DataLoader(range(1000), batch_size=30, sampler=range(200), drop_last=True)
    >>> samples_of_pass(loader), samples_of_pass(loader, most=2)
    (180, 60)

    Args:
        loader: Loader whose samplers are examined; no sample is read.
        most: Number of batches after which the pass ends; None for all batches.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    batches = loader.batch_sampler
    if type(batches) is BatchSampler:
        samples = known_length(batches.sampler)
        if samples is None:
            return None
        size = batches.batch_size
        if batches.drop_last:
            samples -= samples % size
        return samples if most is None else min(samples, most * size)
    sizes = sizes_of_batches(batches, dataset=loader.dataset)
    return None if sizes is None else sum(sizes[:most])


def sampler_of(loader: DataLoader[Any]) -> Any:
    """Return the object that sets the order of a loader's samples.

    Usually, this object is the sampler inside the loader's batch sampler. A batch sampler that is
    not a `BatchSampler` sets the order itself.

    >>> sampler_of(DataLoader(range(9), batch_sampler=BatchSampler(range(3), 2, drop_last=False)))
    range(0, 3)
    """
    batches = loader.batch_sampler
    if batches is None:
        return loader.sampler
    if not isinstance(batches, BatchSampler):
        return batches
    return vars(batches).get("sampler", batches)  # a subclass may have no sampler


def known_length(values: Any) -> int | None:
    """Return `len(values)`; None if the values have no length.

    >>> known_length([1, 2]), known_length(iter([1, 2]))
    (2, None)
    """
    if not isinstance(values, Sized):
        return None
    try:
        return len(values)
    except (TypeError, NotImplementedError):  # such as a RandomSampler of data without a length
        return None


def sum_of_known(numbers: Sequence[int | None]) -> int | None:
    """Return the sum of the numbers that the ranks know; None if one rank does not know its number.

    >>> sum_of_known([101, 99]), sum_of_known([101, None])
    (200, None)
    """
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def sizes_of_batches(batches: Any, *, dataset: Any) -> list[int] | None:
    """Return the number of samples in each batch of one pass, from a copy of the batch sampler.

    The result is None if the batch sampler has no length or cannot be copied.

    >>> sizes_of_batches([[0, 1], [2]], dataset=range(3))
    [2, 1]

    Args:
        batches: Batch sampler, which is not changed.
        dataset: Data set of the loader, which is not copied.
    """
    count = known_length(batches)
    if count is None:
        return None
    # Data sets are not copied: they are large, and a sampler does not change them.
    shared = {id(dataset): dataset}
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
        shared[id(dataset)] = dataset
    try:
        twin = copy.deepcopy(batches, shared)
    except Exception:  # the sampler may hold anything: a lock, a file, a process group
        return None
    with keep_random_state():
        return [len(batch) for batch in islice(twin, count)]
