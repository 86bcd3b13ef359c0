"""Build a micro-batch from indices, in the process that requests it.

Tensors are indexed as a whole, `__getitems__` is called once per micro-batch, and other data sets
are read item by item.

The content of a sample is a function of (seed, position in the stream), even if its data set draws
random numbers. Python's, NumPy's and torch's global CPU generators are therefore seeded before each
sample and restored after the micro-batch. Augmentation therefore does not depend on the number of
ranks, on the chunks or on the workers.
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
    """Describe a data set of N samples that are read one at a time."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


@runtime_checkable
class ReadsMany(Protocol):
    """Describe a data set that reads many samples in one call and returns them as a list."""

    def __getitems__(self, indices: list[int]) -> Any: ...


class Fetch(Protocol):
    """Define how a micro-batch is built from indices.

    `position` is the position of the first index in the stream.
    """

    def __call__(self, position: int, indices: Tensor) -> Any: ...


@dataclass(frozen=True, slots=True)
class FetchTensor:
    """Build micro-batches from the rows of one tensor `[N, ...]`."""

    tensor: Tensor

    def __call__(self, position: int, indices: Tensor) -> Tensor:
        return self.tensor.index_select(0, indices)


@dataclass(frozen=True, slots=True)
class FetchTensors:
    """Build micro-batches as tuples of rows of several tensors `[N, ...]`."""

    tensors: tuple[Tensor, ...]

    def __call__(self, position: int, indices: Tensor) -> tuple[Tensor, ...]:
        return tuple([tensor.index_select(0, indices) for tensor in self.tensors])


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchItems:
    """Read `dataset[i]` for each index and collate the samples; each sample is seeded by its
    position.

    Args:
        dataset: Data set that is read.
        collate: Function (list of samples) -> micro-batch.
        seed: Seed of the samples' randomness; None leaves the global generators unchanged.
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
    """Read a micro-batch with one call of `dataset.__getitems__`, and collate the samples.

    The call is seeded by the position of its first sample. Random numbers that the data set draws
    therefore depend on how the batch is cut into micro-batches.

    Args:
        dataset, collate, seed: These arguments have the same meaning as in `FetchItems`.
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
