"""Find the tensors and samples of batches of any structure; cut and repeat such batches."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class CutBatches:
    """Cut the batches of a loader into micro-batches of at most `size` samples, in each iteration
    anew.

    A value is copied whole into every micro-batch if the value's first dimension is not the number
    of samples.

    >>> [piece["x"].tolist() for piece in CutBatches([{"x": torch.arange(3)}], size=2)]
    [[0, 1], [2]]
    """

    def __init__(self, loader: Iterable[Any], *, size: int) -> None:
        self.loader, self.size = loader, size

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            lead = leading_shape(batch)
            for start in range(0, lead[0], self.size):
                yield cut(batch, slice(start, start + self.size), lead=lead)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield every tensor of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(item)


def samples_in(batch: Any, dimension: int = 0) -> int:
    """Return the number of samples in a batch: the length of the given dimension of its first
    tensor.

    Raises:
        ValueError: The batch has no tensor with the given dimension.
    """
    return leading_shape(batch, dimension)[dimension]


def leading_shape(batch: Any, dimension: int = 0) -> tuple[int, ...]:
    """Return the shape of a batch's first tensor up to, and including, the samples' dimension.

    >>> leading_shape((torch.ones(50, 8, 3), torch.ones(8)), 1)
    (50, 8)

    Raises:
        ValueError: The batch has no tensor with the given dimension.
    """
    first = next((tensor for tensor in tensors_in(batch) if tensor.ndim > dimension), None)
    if first is None:
        raise ValueError(
            f"The samples of a batch of type {type(batch).__name__} cannot be counted, because it "
            f"holds no tensor with more than {dimension} dimensions. Pass a data set instead: "
            "lb.probe(model, optimizer, loss, dataset, base_batch_size=64)."
        )
    return tuple(first.shape[: dimension + 1])


def repeated(batch: Any, dimension: int = 0) -> Any:
    """Return a batch that has every sample of the given batch twice."""

    def twice(item: Any, at: int) -> Any:
        return torch.cat([item, item], at) if isinstance(item, Tensor) else [*item, *item]

    return _map(batch, twice, lead=leading_shape(batch, dimension))


def cut(batch: Any, part: slice, *, lead: tuple[int, ...]) -> Any:
    """Return a batch that holds only a slice of the given batch's samples.

    >>> x, y = cut((torch.ones(50, 8, 3), torch.ones(8)), slice(2), lead=(50, 8))
    >>> x.shape, y.shape
    (torch.Size([50, 2, 3]), torch.Size([2]))

    Args:
        batch: Batch of any structure.
        part: Slice of the samples.
        lead: Shape that `leading_shape` returns; its last number is the number of samples.
    """
    return _map(
        batch, lambda item, at: item[(slice(None),) * at + (part,)] if at else item[part], lead=lead
    )


def fingerprint(micro_batch: Any) -> int:
    """Return a number that almost certainly differs if the tensors of two micro-batches differ."""
    code = 0
    for tensor in tensors_in(micro_batch):
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        code = zlib.crc32(content.numpy().tobytes(), code)
    return code


def _map(value: Any, change: Any, *, lead: tuple[int, ...]) -> Any:
    """Apply `change` to every tensor and every tensor-free list whose length is the number of
    samples.

    `change` also gets the dimension of the samples. Other values stay unchanged.
    """
    if isinstance(value, Tensor):
        at = _sample_dimension(value, lead)
        return value if at is None else change(value, at)
    if isinstance(value, Mapping):
        return {key: _map(item, change, lead=lead) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) == lead[-1] and next(tensors_in(value), None) is None:
            return change(value, 0)
        items = [_map(item, change, lead=lead) for item in value]
        kind = type(value)
        return kind(items) if kind in (list, tuple) else kind(*items)
    return value


def _sample_dimension(tensor: Tensor, lead: tuple[int, ...]) -> int | None:
    if tuple(tensor.shape[: len(lead)]) == lead:
        return len(lead) - 1
    return 0 if tensor.ndim and tensor.shape[0] == lead[-1] else None
