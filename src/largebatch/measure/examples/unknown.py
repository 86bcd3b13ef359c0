"""Any other module: each example's gradient by running that module alone once more."""

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
"""Stands for a tensor in what a module was given."""


class UnknownLayer(PlainLayer):
    """A module whose forward is not known, with every parameter below it.

    Its input is taken apart by examples, and `torch.func` gives the gradient of each; a module for
    which `vmap` has no rule (a recurrent one) is run example by example. The module's buffers and
    the generators stay as they are. Randomness inside of its own forward would not be the same
    twice: the check of the first step finds it.

    Mutable: holds the form of one call's input.

    Args:
        times: examples in each part.
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
        """(inputs, output gradients) of one example -> its gradients. What the module does to its
        buffers happens to these copies."""
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
    """Those of one example, as a batch of one."""
    pairs = zip(tensors, dims, strict=True)
    return [x if dim is None else x.unsqueeze(dim) for x, dim in pairs]


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Its LSTM in float32 fails inside of `vjp`, where torch's own does not."""
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
    except (RuntimeError, NotImplementedError):  # no rule for some operation in it
        rows = []
        with _without_onednn():
            for at in range(count):
                one = [
                    [x if dim is None else x.select(dim, at) for x, dim in zip(xs, ds, strict=True)]
                    for xs, ds in zip(few, dims, strict=True)
                ]
                rows.append(pull(*one))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
