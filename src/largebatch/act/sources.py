"""From what the user has, a data set, tensors or a loader, to the `Source` that serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from largebatch.act.chunks import ChunkSource, InProcess, Workers
from largebatch.act.fetch import (
    Fetch,
    FetchItems,
    FetchMany,
    FetchTensor,
    FetchTensors,
    MapStyle,
    ReadsMany,
)
from largebatch.act.leading_size import leading_size
from largebatch.act.own_loader import OwnLoader
from largebatch.act.planned_step import Source
from largebatch.act.stream import SampleStream

_WORKER_OPTIONS = frozenset(
    {"pin_memory", "prefetch_factor", "multiprocessing_context", "timeout", "worker_init_fn"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a source is read, as the user gave it: see `BatchLoader`."""

    max_micro_batch_size: int | Literal["auto"] | None = None
    seed: int = 0
    shuffle: bool = True
    collate: Callable[[list[Any]], Any] | None = None
    num_workers: int = 0
    worker_options: Mapping[str, Any] | None = None
    seed_samples: bool = True
    size_of: Callable[[Any], int] | None = None
    dataset_size: int | None = None

    def __post_init__(self) -> None:
        most = self.max_micro_batch_size
        if most not in (None, "auto") and not (isinstance(most, int) and most >= 1):
            raise ValueError(
                'max_micro_batch_size is a number of samples, at least 1, or "auto" for the '
                f"largest that fits; got {most!r}. Example: max_micro_batch_size=64"
            )
        size = self.dataset_size
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise ValueError(
                "dataset_size is the samples that all ranks' loaders give in one pass, a whole "
                f"number of at least 1; got {size!r}. Example: dataset_size=60_000"
            )
        if self.num_workers < 0:
            raise ValueError(f"num_workers is at least 0; got {self.num_workers}.")
        if self.worker_options and not self.num_workers:
            raise ValueError(
                "worker_options are for worker processes, and there are none. Use num_workers=2 "
                "or drop worker_options."
            )

        unknown = set(self.worker_options or {}) - _WORKER_OPTIONS
        if unknown:
            raise ValueError(
                f"worker_options may hold {sorted(_WORKER_OPTIONS)}, as in "
                f"worker_options={{'pin_memory': True}}; got {sorted(unknown)}."
            )

    def refuse(self, *names: str, because: str) -> None:
        """Raise if one of these was given: the source has no use for it."""
        defaults = {field.name: field.default for field in fields(self)}
        given = [name for name in names if getattr(self, name) != defaults[name]]
        if given:
            raise ValueError(f"Drop {' and '.join(given)} from BatchLoader(...): {because}.")


def open_source(source: Any, options: Options) -> Source:
    """The source that serves a data set, tensors, a loader or another iterable.

    Raises:
        ValueError: nothing that can be read, or an option that it has no use for.
    """
    _refuse_unreadable(source)
    if isinstance(source, MapStyle):
        options.refuse(
            "size_of", "dataset_size", because="the samples of a data set are counted already"
        )
        return _chunk_source(source, options)
    options.refuse(
        "max_micro_batch_size",
        "collate",
        "num_workers",
        because="the loader's batches are the micro-batches, read and collated by itself",
    )
    return OwnLoader(
        source, size_of=options.size_of or leading_size, dataset_size=options.dataset_size
    )


def _chunk_source(source: Any, options: Options) -> ChunkSource:
    whole, members = _unwrapped(source)
    tensors = _tensors_of(whole)
    size = len(whole) if tensors is None else tensors[0].shape[0]
    size = size if members is None else len(members)
    if size == 0:
        raise ValueError(f"The {type(source).__name__} is empty: give one with samples.")
    device = None
    if tensors is not None and options.collate is None:
        options.refuse("num_workers", because="tensors are indexed whole, faster than by workers")
        device = tensors[0].device
        fetch: Fetch = FetchTensors(tensors)
        if isinstance(whole, Tensor):
            fetch = FetchTensor(whole)
    else:
        fetch = _fetch(TensorDataset(*whole) if isinstance(whole, tuple) else whole, options)
    stream = SampleStream(
        size, seed=options.seed, shuffle=options.shuffle, members=members, device=device
    )
    most = options.max_micro_batch_size
    return ChunkSource(
        Workers(fetch, stream, workers=options.num_workers, options=options.worker_options or {})
        if options.num_workers
        else InProcess(fetch, stream),
        dataset_size=size,
        max_micro_batch_size=None if most == "auto" else most,
    )


def _fetch(dataset: Any, options: Options) -> Fetch:
    seed = options.seed if options.seed_samples else None
    collate = options.collate or default_collate
    if isinstance(dataset, ReadsMany):
        return FetchMany(dataset=dataset, collate=collate, seed=seed)
    return FetchItems(dataset=dataset, collate=collate, seed=seed)


def _unwrapped(source: Any) -> tuple[Any, Tensor | None]:
    """The data set within a `Subset` (what `random_split` gives), and the indices it has there.

    A subset offers `__getitems__` whatever it holds; the data set within says how it is best read.
    """
    members: Tensor | None = None
    while type(source) is Subset:
        indices = torch.as_tensor(source.indices, dtype=torch.int64)
        members = indices if members is None else indices[members]
        source = source.dataset
    return source, members


def _tensors_of(source: Any) -> tuple[Tensor, ...] | None:
    """The tensors of a source that is nothing but tensors."""
    if type(source) is TensorDataset:
        tensors = source.tensors
    elif isinstance(source, Tensor):
        tensors = (source,)
    elif isinstance(source, tuple):
        tensors = source
    else:
        return None
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError(
            "A tuple given to BatchLoader holds tensors of equal first dimension. Convert arrays: "
            "BatchLoader((torch.from_numpy(x), torch.from_numpy(y)), batch_size=64)"
        )
    if any(tensor.ndim == 0 for tensor in tensors) or len({t.shape[0] for t in tensors}) > 1:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"Tensors need the same first dimension, the samples; got {shapes}.")
    if len({tensor.device for tensor in tensors}) > 1:
        devices = [str(tensor.device) for tensor in tensors]
        raise ValueError(f"Tensors must be on one device, as in y.to(x.device); got {devices}.")
    return tensors


def _refuse_unreadable(source: Any) -> None:
    name = type(source).__name__
    if isinstance(source, IterableDataset):
        raise ValueError(
            f"{name} is an IterableDataset: only a DataLoader knows how it is batched. Wrap it: "
            "BatchLoader(DataLoader(dataset, batch_size=64), batch_size=64)"
        )
    if isinstance(source, Mapping):
        raise ValueError(
            f"A {name} is no data set. Give one of its splits, BatchLoader(data['train'], ...), or "
            "its tensors as a tuple, BatchLoader((data['x'], data['y']), ...)"
        )
    if isinstance(source, MapStyle):
        return
    if isinstance(source, Dataset) or not isinstance(source, Iterable):
        raise ValueError(
            f"{name} cannot be read: a data set has __len__ and __getitem__, a loader __iter__. "
            "For instance BatchLoader(TensorDataset(x, y), batch_size=64)"
        )
