"""Choose the `Source` for what the user has: a data set, tensors or a loader."""

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
    """Hold the user's options for reading a source; `BatchLoader` describes them."""

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
                f"max_micro_batch_size={most!r} was given, but it must be a number of samples of "
                'at least 1, or "auto" for the largest size that fits. For example: '
                "max_micro_batch_size=64."
            )
        size = self.dataset_size
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise ValueError(
                f"dataset_size={size!r} was given, but it must be a whole number of at least 1: "
                "the samples that the loaders of all ranks give in one pass. For example: "
                "dataset_size=60_000."
            )
        if self.num_workers < 0:
            raise ValueError(
                f"num_workers={self.num_workers} was given, but it must be at least "
                "0. For example: num_workers=2."
            )
        if self.worker_options and not self.num_workers:
            raise ValueError(
                "worker_options was given, but num_workers=0, so there are no worker processes. "
                "Pass num_workers=2, or remove worker_options."
            )

        unknown = set(self.worker_options or {}) - _WORKER_OPTIONS
        if unknown:
            raise ValueError(
                f"worker_options has the unknown keys {sorted(unknown)}. The known keys are "
                f"{sorted(_WORKER_OPTIONS)}. For example: worker_options={{'pin_memory': True}}."
            )

    def refuse(self, *names: str, because: str) -> None:
        """Raise a ValueError if one of the named options was given, because it does not apply to
        the source.
        """
        defaults = {field.name: field.default for field in fields(self)}
        given = [name for name in names if getattr(self, name) != defaults[name]]
        if given:
            raise ValueError(
                f"Remove {' and '.join(given)} from BatchLoader(...), because {because}."
            )


def open_source(source: Any, options: Options) -> Source:
    """Return the source that serves a data set, tensors, a loader or another iterable.

    Raises:
        ValueError: The value cannot be read, or an option does not apply to it.
    """
    _refuse_unreadable(source)
    if isinstance(source, MapStyle):
        options.refuse(
            "size_of", "dataset_size", because="the samples of a data set are counted by its len()"
        )
        return _chunk_source(source, options)
    options.refuse(
        "max_micro_batch_size",
        "collate",
        "num_workers",
        because="the loader itself reads and collates its batches, which are the micro-batches",
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
        raise ValueError(
            f"The {type(source).__name__} is empty. Pass data with at least one sample."
        )
    device = None
    if tensors is not None and options.collate is None:
        options.refuse("num_workers", because="indexing tensors is faster without workers")
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
    """Return the data set inside a `Subset`, and the indices that the subset selects from it.

    `random_split` also returns a `Subset`. A `Subset` always offers `__getitems__`, so only the
    data set inside shows the best way to read it.
    """
    members: Tensor | None = None
    while type(source) is Subset:
        indices = torch.as_tensor(source.indices, dtype=torch.int64)
        members = indices if members is None else indices[members]
        source = source.dataset
    return source, members


def _tensors_of(source: Any) -> tuple[Tensor, ...] | None:
    """Return the tensors of a source that consists only of tensors; None for another source."""
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
            "The tuple given to BatchLoader is empty or holds something that is not a tensor. "
            "Pass tensors with equal first dimensions. To convert NumPy arrays: "
            "BatchLoader((torch.from_numpy(x), torch.from_numpy(y)), batch_size=64)."
        )
    if any(tensor.ndim == 0 for tensor in tensors) or len({t.shape[0] for t in tensors}) > 1:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(
            f"The tensors given to BatchLoader have the shapes {shapes}, but they must have the "
            "same first dimension, the number of samples. Check that x and y hold the same "
            "samples: BatchLoader((x, y), batch_size=64)."
        )
    if len({tensor.device for tensor in tensors}) > 1:
        devices = [str(tensor.device) for tensor in tensors]
        raise ValueError(
            f"The tensors given to BatchLoader are on the devices {devices}, but "
            "they must be on one device. Move the tensors: y = y.to(x.device)."
        )
    return tensors


def _refuse_unreadable(source: Any) -> None:
    name = type(source).__name__
    if isinstance(source, IterableDataset):
        raise ValueError(
            f"{name} is an IterableDataset, and BatchLoader cannot make batches from it. Wrap the "
            "data set in a DataLoader: BatchLoader(DataLoader(dataset, batch_size=64), "
            "batch_size=64)."
        )
    if isinstance(source, Mapping):
        raise ValueError(
            f"A {name} was given, but BatchLoader needs a data set. Pass one split, "
            "BatchLoader(data['train'], ...), or pass the tensors as a tuple, "
            "BatchLoader((data['x'], data['y']), ...)."
        )
    if isinstance(source, MapStyle):
        return
    if isinstance(source, Dataset) or not isinstance(source, Iterable):
        raise ValueError(
            f"BatchLoader cannot read a {name}. Pass a data set with __len__ and __getitem__, or a "
            "loader with __iter__. For example: BatchLoader(TensorDataset(x, y), batch_size=64)."
        )
