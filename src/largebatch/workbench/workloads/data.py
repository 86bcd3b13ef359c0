"""Define the data of a workload: three splits, each a tuple of tensors or a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from largebatch.core.errors import LargeBatchError

Batch = tuple[Tensor, ...]
"""Tuple of tensors, usually inputs and targets. The first dimension of each tensor is the sample.
"""

Split = Batch | Dataset[Any]
"""All samples of one split, as a tuple of tensors or as a data set.

A data set returns one sample for each index. The sample is a tuple of tensors.
"""


class DataMissing(LargeBatchError):
    """Report that the data of a workload are not on the machine.

    >>> issubclass(DataMissing, LargeBatchError)
    True
    """


class DataDamaged(LargeBatchError):
    """Report that a data file of a workload is corrupted or differs from the expected file.

    >>> issubclass(DataDamaged, LargeBatchError)
    True
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Hold the three splits of a workload's data.

    >>> import torch
    >>> split = (torch.zeros(5, 2), torch.zeros(5))
    >>> Data(train=split, validation=split, test=split, facts={"version": 1}).facts
    {'version': 1}

    Args:
        train: Split on which the model is trained.
        validation: Split on which learning rates and defaults are chosen.
        test: Split for the reported results. No setting is chosen on the test split.
        facts: Values about the data for the record, such as a version or a checksum.
    """

    train: Split
    validation: Split
    test: Split
    facts: Mapping[str, Any] = field(default_factory=dict)


def size(split: Split) -> int:
    """Return the number of samples in a split.

    >>> import torch
    >>> size((torch.zeros(5, 2), torch.zeros(5)))
    5
    """
    return len(split[0]) if isinstance(split, tuple) else len(split)  # type: ignore[arg-type]


def in_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Yield the samples of a split in their order, in batches of `batch_size` samples.

    The last batch can be smaller.

    >>> import torch
    >>> [len(x) for x, _ in in_batches((torch.zeros(5, 2), torch.zeros(5)), 2)]
    [2, 2, 1]
    """
    if not isinstance(split, tuple):
        yield from (tuple(batch) for batch in DataLoader(split, batch_size=batch_size))
        return
    for start in range(0, size(split), batch_size):
        yield tuple(tensor[start : start + batch_size] for tensor in split)
