"""What a workload trains on: three splits, each in memory as a tuple of tensors, or a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from largebatch.core.errors import LargeBatchError

Batch = tuple[Tensor, ...]
"""Tensors that share their first dimension, the samples: usually inputs and targets."""

Split = Batch | Dataset[Any]
"""All samples of one split. Tensors need no loader; a data set gives a sample, itself a
tuple of tensors, for each index."""


class DataMissing(LargeBatchError):
    """A workload's data is not on this machine."""


class DataDamaged(LargeBatchError):
    """A file of a workload's data is not the one that its results were measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The three splits and what is worth knowing about them.

    Args:
        train: what gradients are taken on.
        validation: what learning rates and defaults are chosen on.
        test: what is reported, and nothing is chosen on.
        facts: plain values for the record, such as a version or a checksum.
    """

    train: Split
    validation: Split
    test: Split
    facts: Mapping[str, Any] = field(default_factory=dict)


def size(split: Split) -> int:
    """Samples in a split.

    >>> import torch
    >>> size((torch.zeros(5, 2), torch.zeros(5)))
    5
    """
    return len(split[0]) if isinstance(split, tuple) else len(split)  # type: ignore[arg-type]


def in_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """A split in its own order, `batch_size` samples at a time, the last batch as short as it is.

    >>> import torch
    >>> [len(x) for x, _ in in_batches((torch.zeros(5, 2), torch.zeros(5)), 2)]
    [2, 2, 1]
    """
    if not isinstance(split, tuple):
        yield from (tuple(batch) for batch in DataLoader(split, batch_size=batch_size))
        return
    for start in range(0, size(split), batch_size):
        yield tuple(tensor[start : start + batch_size] for tensor in split)
