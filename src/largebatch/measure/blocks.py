"""Measure the moments of the gradient in each block of parameters.

A block is the set of parameters of one module, such as `net.stem` and `net.head`. The moments of
the blocks show which modules the gradient's noise comes from. The squared norm of the gradient is
the sum of the squared norms of its blocks, and the variance of the gradient is the sum of the
variances of its blocks. So the moments of the whole gradient are the sum of the moments of its
blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.measurement import GradientMoments
from largebatch.measure.parameters import Parameters
from largebatch.measure.squares import squared_norm_of_each, squarer
from largebatch.measure.statistics import Totals
from largebatch.measure.sums import Sums


def blocks_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the module of each parameter, at the first depth at which module names differ.

    >>> blocks_of(["net.stem.weight", "net.stem.bias", "net.head.weight"])
    ('net.stem', 'net.stem', 'net.head')
    >>> blocks_of(["weight", "bias"])
    ('weight', 'bias')

    Args:
        names: Names of the parameters, with dots between the names of modules.
    """
    paths = [name.split(".") for name in names]
    depth = 0
    while len({tuple(path[: depth + 1]) for path in paths}) == 1 and all(
        len(path) > depth + 2 for path in paths
    ):
        depth += 1
    return tuple(".".join(path[: max(min(depth + 1, len(path) - 1), 1)]) for path in paths)


class BlockNorms:
    """Measure the moments of the raw gradient for the whole model and for each of its blocks.

    A block is the set of parameters of one module. `blocks_of` chooses the modules.

    For the whole gradient, `BlockNorms` and `SquaredNorms` give the same moments. The taps
    `LeafHooks` and `Detached` support `BlockNorms`; the tap `Flat` does not.

    >>> import largebatch as lb
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    >>> blocks = BlockNorms()
    >>> lb.Meter(model, statistics=[blocks]).bind(torch.optim.SGD(model.parameters(), lr=0.1))
    >>> dict(blocks.sizes)
    {'0': 9, '1': 4}

    Mutable: holds the scalars of the current micro-batch, and the moments of the last step in
    `last`.

    Attributes:
        names: Names of the blocks (modules), in the order of the model.
        sizes: Number of parameters in each block (module), by name of the block.
        last: Moments of the gradient of each block (module) in the last measured step, by name of
            the block; empty if the moments are unknown.
    """

    name = "moments"
    parts = True

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.of_parts: tuple[str, ...] = ()
        self.of_batch: tuple[str, ...] = ()
        self.sizes: Mapping[str, int] = {}
        self.last: Mapping[str, GradientMoments] = {}

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._parameters = parameters
        self._blocks = blocks_of(parameters.names)
        self._squares = [*map(squarer, parameters.tensors)]
        self.names = tuple(dict.fromkeys(self._blocks))
        self.of_parts = tuple(f"parts of {block}" for block in self.names)
        self.of_batch = tuple(f"batch of {block}" for block in self.names)
        sizes = dict.fromkeys(self.names, 0)
        for tensor, block in zip(parameters.tensors, self._blocks, strict=True):
            sizes[block] += tensor.numel()
        self.sizes = sizes
        self._part: dict[str, list[Tensor]] = {name: [] for name in self.names}

    def open(self) -> None:
        for scalars in self._part.values():
            scalars.clear()

    def see(self, index: int, gradient: Tensor) -> None:
        self._part[self._blocks[index]].append(self._squares[index](gradient))

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        for name, scalars in zip(self.of_parts, self._part.values(), strict=True):
            sums.add(name, *scalars, coefficient=coefficient)
            scalars.clear()

    def close_batch(self, sums: Sums, *, share: float) -> None:
        pairs = zip(self._parameters.tensors, self._blocks, strict=True)
        held = [(p.grad, block) for p, block in pairs if p.grad is not None]
        scalars: dict[str, list[Tensor]] = {name: [] for name in self.names}
        squares = squared_norm_of_each([gradient for gradient, _ in held])
        for square, (_, block) in zip(squares, held, strict=True):
            scalars[block].append(square)
        for name, block in zip(self.of_batch, self.names, strict=True):
            sums.add(name, *scalars[block], coefficient=share)

    def read(self, totals: Totals) -> GradientMoments | None:
        moments = {
            block: totals.moments(of_parts=of_parts, of_batch=of_batch)
            for block, of_parts, of_batch in zip(
                self.names, self.of_parts, self.of_batch, strict=True
            )
        }
        self.last = {block: known for block, known in moments.items() if known is not None}
        return reduce(add, self.last.values()) if self.last else None
