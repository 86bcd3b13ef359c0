"""Count the samples of a micro-batch by the first dimension of its first tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def leading_size(micro_batch: Any) -> int:
    """Return the number of samples in a micro-batch: the first dimension of the first tensor found.

    >>> leading_size({"x": ["text", Tensor(5, 3)]})
    5

    Raises:
        ValueError: The micro-batch holds no tensor with a first dimension.
    """
    found = next(_tensors(micro_batch), None)
    if found is None or found.ndim == 0:
        raise ValueError(
            f"The samples of a micro-batch of type {type(micro_batch).__name__} cannot be counted, "
            "because it holds no tensor with a first dimension. Pass a function that counts the "
            "samples: "
            "BatchLoader(loader, batch_size=64, size_of=lambda micro_batch: len(micro_batch.ids))."
        )
    return found.shape[0]


def dimension_advice(micro_batch: Any) -> str:
    """Return advice for a micro-batch whose first dimension may not be the dimension of the
    samples.

    The result is "" if the first dimensions of all tensors of the micro-batch are equal.

    >>> dimension_advice((Tensor(50, 8, 3), Tensor(8)))[:53]
    ' The first dimensions of the tensors in a micro-batch'
    """
    lengths = [tensor.shape[0] for tensor in _tensors(micro_batch) if tensor.ndim]
    if len(set(lengths)) < 2:
        return ""
    return (
        " The first dimensions of the tensors in a micro-batch are "
        f"{', '.join(map(str, lengths))}. If the samples are along another dimension, as in (T, B, "
        "...), pass BatchLoader(loader, batch_size=64, size_of=lambda batch: batch[0].shape[1])."
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
