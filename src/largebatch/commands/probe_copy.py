"""A user's run, copied: what the probe does to the copy leaves no trace on the original."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from largebatch.measure.parameters import bare


def copied(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """Deep copies of both, the optimizer's copy moving the model's copy; gradients are left out.

    A model in DistributedDataParallel gets a wrapper of its own.

    Raises:
        ValueError: a model or an optimizer that cannot be copied.
    """
    try:
        twin, twin_optimizer = copy.deepcopy((bare(model), optimizer))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"The model and its optimizer cannot be copied ({error}). Give freshly built ones that "
            "can: probe_run(build_model(), ...), or write a Workload and probe that."
        ) from error
    twin_optimizer.zero_grad()
    if isinstance(model, nn.parallel.DistributedDataParallel):
        twin = nn.parallel.DistributedDataParallel(twin, process_group=model.process_group)
    return twin, twin_optimizer


@contextmanager
def random_state_kept(model: nn.Module, batches: Any, *, seed: int) -> Iterator[None]:
    """Inside, torch's CPU generator starts at `seed`; afterwards every generator is as it was:
    Python's, NumPy's, torch's on the CPU and on the model's device, and a loader's own."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    own = [(generator, generator.get_state()) for generator in _generators(batches)]
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in own:
            generator.set_state(state)


def _generators(batches: Any) -> list[torch.Generator]:
    if not isinstance(batches, DataLoader):
        return []
    holders = (batches, batches.sampler, batches.batch_sampler)
    found = [vars(holder).get("generator") for holder in holders if holder is not None]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


class Pieces:
    """A loader whose batches are cut into micro-batches of at most `size` samples, each iteration
    anew. What has no first dimension of the batch's length goes into every piece whole.

    >>> [piece["x"].tolist() for piece in Pieces([{"x": torch.arange(3)}], size=2)]
    [[0, 1], [2]]
    """

    def __init__(self, loader: Iterable[Any], *, size: int) -> None:
        self.loader, self.size = loader, size

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            length = samples_in(batch)
            for start in range(0, length, self.size):
                yield _cut(batch, slice(start, start + self.size), length=length)


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
            "probe_run(model, optimizer, loss, dataset, base_batch_size=64)"
        )
    return first.shape[0]


def repeated(batch: Any) -> Any:
    """The same samples twice."""
    length = samples_in(batch)

    def twice(item: Any) -> Any:
        return torch.cat([item, item]) if isinstance(item, Tensor) else [*item, *item]

    return _map(batch, twice, length=length)


def _cut(batch: Any, part: slice, *, length: int) -> Any:
    return _map(batch, lambda item: item[part], length=length)


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
