"""From indices to a micro-batch, in the process that asks: tensors, `__getitems__`, item by item.

What a sample looks like is a function of (seed, position in the stream), also where its data set
draws at random: Python's, NumPy's and torch's global CPU generators are seeded before each sample
and put back after the micro-batch, so augmentation does not depend on ranks, chunks or workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from largebatch.act.stream import seed_of
from largebatch.measure.random_state import keep_random_state, seed_generators


@runtime_checkable
class MapStyle(Protocol):
    """A data set of N samples, read one at a time."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


@runtime_checkable
class ReadsMany(Protocol):
    """A data set that reads many samples in one call and gives them as a list."""

    def __getitems__(self, indices: list[int]) -> Any: ...


class Fetch(Protocol):
    """How the micro-batch of some indices is made; `position` is that of the first of them."""

    def __call__(self, position: int, indices: Tensor) -> Any: ...


@dataclass(frozen=True, slots=True)
class FetchTensor:
    """Rows of one tensor `[N, ...]`."""

    tensor: Tensor

    def __call__(self, position: int, indices: Tensor) -> Tensor:
        return self.tensor.index_select(0, indices)


@dataclass(frozen=True, slots=True)
class FetchTensors:
    """A tuple of rows of several tensors `[N, ...]`."""

    tensors: tuple[Tensor, ...]

    def __call__(self, position: int, indices: Tensor) -> tuple[Tensor, ...]:
        return tuple([tensor.index_select(0, indices) for tensor in self.tensors])


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchItems:
    """`dataset[i]` for each index, collated; each sample is seeded by its own position.

    Args:
        dataset: what is read.
        collate: list of samples -> micro-batch.
        seed: of the samples' randomness; None leaves the global generators alone.
    """

    dataset: MapStyle
    collate: Callable[[list[Any]], Any]
    seed: int | None

    def __call__(self, position: int, indices: Tensor) -> Any:
        if self.seed is None:
            return self.collate([self.dataset[i] for i in indices.tolist()])
        items = []
        with keep_random_state():
            for at, index in enumerate(indices.tolist(), start=position):
                seed_generators(seed_of("sample", self.seed, at))
                items.append(self.dataset[index])
            return self.collate(items)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchMany:
    """One `dataset.__getitems__` call, collated; the call is seeded by its first sample's position,
    so where it draws at random the draws depend on how the batch is cut. Arguments: `FetchItems`.
    """

    dataset: ReadsMany
    collate: Callable[[list[Any]], Any]
    seed: int | None

    def __call__(self, position: int, indices: Tensor) -> Any:
        if self.seed is None:
            return self.collate(self.dataset.__getitems__(indices.tolist()))
        with keep_random_state():
            seed_generators(seed_of("sample", self.seed, position))
            return self.collate(self.dataset.__getitems__(indices.tolist()))
