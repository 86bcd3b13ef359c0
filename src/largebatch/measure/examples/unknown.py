"""Compute the examples' gradients of a module without known formula by running it a second time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from largebatch.measure.examples.layer import (
    Piece,
    PlainLayer,
    SavedTensors,
    dimension_of,
    examples_at_once,
)
from largebatch.measure.random_state import keep_random_state

Pull = Callable[..., dict[str, Tensor]]
Dims = Sequence[int | None]

TENSOR = object()
"""Placeholder of a tensor in a module's arguments."""


class UnknownLayer(PlainLayer):
    """Compute the gradients of a module of unknown type, including its submodules' parameters.

    The input is split into examples, and `torch.func` computes the gradient of each example. A
    module that `vmap` does not support, such as a recurrent one, runs once per example. The
    module's buffers and the random generators are not changed. If the module's forward draws random
    numbers, the second run differs from the first run, and the check of the first training step
    raises an error.

    Mutable: holds the structure of one call's input.

    Args:
        times: Number of examples in each separately measured group of examples.
    """

    keeps_output = True

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times

    def keep(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> SavedTensors:
        leaves, self._form = tree_flatten((args, kwargs))
        self._leaves = [TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def pieces(
        self, module: nn.Module, names: Collection[str], kept: SavedTensors, delta: Any, rows: int
    ) -> Iterator[Piece]:
        if self.times > 1:
            yield from self._grouped(module, names, kept, delta, rows)
            return
        deltas = delta if isinstance(delta, tuple) else (delta,)
        parameters = {name: module.get_parameter(name).detach() for name in names}
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        inputs, outputs = ([dimension_of(x, rows) for x in tensors] for tensors in (kept, deltas))
        elements = sum(p.numel() for p in parameters.values()) + sum(x[0].numel() for x in deltas)
        step = examples_at_once(rows, elements=elements, like=deltas[0])
        pull = self._pull(module, parameters, buffers, inputs, outputs)
        accelerators = [] if deltas[0].device.type == "cpu" else [deltas[0].device]
        for at in range(0, rows, step):
            count = min(step, rows - at)
            few = _narrowed(kept, inputs, at, count), _narrowed(deltas, outputs, at, count)
            with keep_random_state(accelerators):
                found = _pulled(pull, (inputs, outputs), few, count)
            yield from found.items()

    def _grouped(
        self, module: nn.Module, names: Collection[str], kept: SavedTensors, delta: Any, rows: int
    ) -> Iterator[Piece]:
        times, self.times = self.times, 1
        try:
            pieces = list(self.pieces(module, names, kept, delta, rows * times))
        finally:
            self.times = times
        for name in names:
            whole = torch.cat([piece for at, piece in pieces if at == name])
            yield name, whole.unflatten(0, (rows, times)).sum(1)

    def _pull(
        self,
        module: nn.Module,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        inputs: Dims,
        outputs: Dims,
    ) -> Pull:
        """Return a function (inputs, output gradients) of one example -> the example's gradients.

        The module changes only the copies in `buffers`.
        """
        leaves, form = self._leaves, self._form

        def pull(given: list[Tensor], deltas: list[Tensor]) -> dict[str, Tensor]:
            tensors = iter(_alone(given, inputs))
            flat = [next(tensors) if leaf is TENSOR else leaf for leaf in leaves]
            args, kwargs = tree_unflatten(flat, form)

            def run(values: dict[str, Tensor]) -> list[Tensor]:
                found = tree_flatten(functional_call(module, (values, buffers), args, kwargs))[0]
                return [x for x in found if isinstance(x, Tensor) and x.is_floating_point()]

            return vjp(run, parameters)[1](_alone(deltas, outputs))[0]

        return pull


def _narrowed(tensors: Sequence[Tensor], dims: Dims, at: int, count: int) -> list[Tensor]:
    pairs = zip(tensors, dims, strict=True)
    return [x if dim is None else x.narrow(dim, at, count) for x, dim in pairs]


def _alone(tensors: Sequence[Tensor], dims: Dims) -> list[Tensor]:
    """Return the tensors of one example as a batch of one example."""
    pairs = zip(tensors, dims, strict=True)
    return [x if dim is None else x.unsqueeze(dim) for x, dim in pairs]


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Switch oneDNN off, because its LSTM in float32 fails within `vjp`."""
    (enabled, *_) = torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=enabled)


def _pulled(
    pull: Pull, dims: tuple[Dims, Dims], few: tuple[list[Tensor], list[Tensor]], count: int
) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return vmap(pull, in_dims=tuple(map(list, dims)))(*few)
    except (RuntimeError, NotImplementedError):  # vmap does not support an operation
        rows = []
        with _without_onednn():
            for at in range(count):
                one = [
                    [x if dim is None else x.select(dim, at) for x, dim in zip(xs, ds, strict=True)]
                    for xs, ds in zip(few, dims, strict=True)
                ]
                rows.append(pull(*one))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
