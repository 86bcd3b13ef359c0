"""Batches of any shape: their tensors and samples, pieces and repetitions of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class CutBatches:
    """A loader whose batches are cut into micro-batches of at most `size` samples, each iteration
    anew. What has no first dimension of the batch's length goes into every piece whole.

    >>> [piece["x"].tolist() for piece in CutBatches([{"x": torch.arange(3)}], size=2)]
    [[0, 1], [2]]
    """

    def __init__(self, loader: Iterable[Any], *, size: int) -> None:
        self.loader, self.size = loader, size

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            length = samples_in(batch)
            for start in range(0, length, self.size):
                yield cut(batch, slice(start, start + self.size), length=length)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Every tensor of a batch, in its order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(item)


def samples_in(batch: Any) -> int:
    """The first dimension of a batch's first tensor.

    Raises:
        ValueError: no tensor with a first dimension.
    """
    first = next((tensor for tensor in tensors_in(batch) if tensor.ndim), None)
    if first is None:
        raise ValueError(
            f"The samples of a batch of type {type(batch).__name__} cannot be counted, so it "
            "cannot be cut: it holds no tensor with a first dimension. Give a data set instead: "
            "lb.probe(model, optimizer, loss, dataset, base_batch_size=64)"
        )
    return first.shape[0]


def repeated(batch: Any) -> Any:
    """The same samples twice."""
    length = samples_in(batch)

    def twice(item: Any) -> Any:
        return torch.cat([item, item]) if isinstance(item, Tensor) else [*item, *item]

    return _map(batch, twice, length=length)


def cut(batch: Any, part: slice, *, length: int) -> Any:
    """The samples of a slice of a batch of so many."""
    return _map(batch, lambda item: item[part], length=length)


def fingerprint(micro_batch: Any) -> int:
    """A number that differs when the tensors of two micro-batches do."""
    code = 0
    for tensor in tensors_in(micro_batch):
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        code = zlib.crc32(content.numpy().tobytes(), code)
    return code


def _map(value: Any, change: Any, *, length: int) -> Any:
    """`change` of every tensor, and of every list without tensors, that holds `length` samples."""
    if isinstance(value, Tensor):
        return change(value) if value.ndim and value.shape[0] == length else value
    if isinstance(value, Mapping):
        return {key: _map(item, change, length=length) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) == length and next(tensors_in(value), None) is None:
            return change(value)
        items = [_map(item, change, length=length) for item in value]
        kind = type(value)
        return kind(items) if kind in (list, tuple) else kind(*items)
    return value
