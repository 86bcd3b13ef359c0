"""The seam of how one kind of module gives its parameters' gradient, example by example.

Example i's contribution to the gradient of a parameter follows from what the module was given and
from the gradient of its output. For a linear layer it is the sum over positions t of the outer
products delta_it a_it^T; its squared norm needs no such matrix:

    |sum_t delta_t a_t^T|^2 = sum_{t,s} <a_t, a_s> <delta_t, delta_s>,

for one position |delta|^2 |a|^2, and coordinate by coordinate the sum over examples is then
(delta^2)^T (a^2). Convolutions are such layers over patches of their input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

SavedTensors = tuple[Tensor, ...]
"""What is kept of a module's input until its output's gradient is there; examples come first."""

Piece = tuple[str, Tensor]
"""A parameter's name, and gradients of it for some examples in a row: [b, *its shape]."""

CPU_BYTES, DEVICE_BYTES = 1 << 20, 1 << 26
"""What pieces may hold at a time: on a CPU they should stay in its cache."""

BLOCK_COST = 20.0
"""Writing, squaring and adding up one element of an example's matrix costs as much as so many
multiplications of a matrix product. Measured on a CPU with AVX-512 at 60 to 100 GFLOP/s: 15 to 25
for matrices between 128 x 128 and 512 x 128."""

GRAM_COST = 1.2
"""The same for one multiplication in the two small products of a Gram matrix."""


class Layer(Protocol):
    """One kind of module. `names` are those of its parameters that are asked for, `rows` the
    examples, or groups of them; a module that was called with k rows for each gives `rows`
    gradients, too.

    Attributes:
        keeps_output: whether autograd may keep the module's output for its backward.
        may_replace: whether `replaces` is worth asking.
        times: examples in each part, where a module must be run with them.
    """

    @property
    def keeps_output(self) -> bool: ...
    @property
    def may_replace(self) -> bool: ...
    @property
    def times(self) -> int: ...

    def keep(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SavedTensors:
        """What is needed of the input."""
        ...

    def replaces(self, module: Any, shape: torch.Size, *, rows: int, squares: bool) -> bool:
        """Whether the gradient of `weight` should come from the pieces, which are formed anyway,
        rather than from autograd. `shape` is the input's."""
        ...

    def sqnorm(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> list[Tensor] | None:
        """Scalars whose sum is sum_i |g_i|^2, where that is cheaper than from pieces."""
        ...

    def squares(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> dict[str, Tensor] | None:
        """sum_i g_i^2 coordinate by coordinate, where that is cheaper than from pieces."""
        ...

    def pieces(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> Iterator[Piece]:
        """Each example's gradient of each parameter, a few examples at a time, in their order. A
        piece may be overwritten by the next one of its parameter, or by whom it is given to."""
        ...

    def along(self, module: Any, values: dict[str, Tensor], kept: SavedTensors) -> Tensor | None:
        """The output with these values in place of the parameters, where it is linear in them, so
        that its product with delta_i is <g_i, values>; a parameter that is missing counts as 0."""
        ...


class PlainLayer:
    """What most layers answer: the first argument is kept, and everything comes from pieces.

    Args:
        replace: whether the parameters' gradients may come from pieces rather than from autograd.
    """

    keeps_output = False
    can_replace = False
    times = 1

    def __init__(self, *, replace: bool = True) -> None:
        self._replace = replace

    @property
    def may_replace(self) -> bool:
        return self.can_replace and self._replace

    def keep(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SavedTensors:
        return (args[0] if args else next(iter(kwargs.values())),)

    def replaces(self, module: Any, shape: torch.Size, *, rows: int, squares: bool) -> bool:
        return False

    def sqnorm(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> list[Tensor] | None:
        return None

    def squares(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> dict[str, Tensor] | None:
        return None

    def along(self, module: Any, values: dict[str, Tensor], kept: SavedTensors) -> Tensor | None:
        return None


def blocks_are_cheaper(*, length: int, inputs: int, outputs: int, replace: bool) -> bool:
    """Whether an example's matrix [outputs, inputs] costs less than two Gram matrices
    [length, length]. If it replaces the weight's gradient, that gradient's own product is saved.

    >>> blocks_are_cheaper(length=64, inputs=128, outputs=512, replace=True)
    True
    >>> blocks_are_cheaper(length=64, inputs=128, outputs=512, replace=False)
    False
    """
    cost = BLOCK_COST if replace else BLOCK_COST + length
    return cost * inputs * outputs < GRAM_COST * length**2 * (inputs + outputs)


def examples_at_once(rows: int, *, elements: int, like: Tensor) -> int:
    """How many examples' pieces of so many elements are formed at a time."""
    limit = CPU_BYTES if like.device.type == "cpu" else DEVICE_BYTES
    return max(1, min(rows, limit // max(1, elements * like.element_size())))


def dimension_of(x: Tensor, rows: int) -> int | None:
    """Which dimension of an unknown module's tensor is the examples: the first, or the second, as
    in the state of a recurrent layer; None where all examples share it."""
    if x.dim() and len(x) == rows:
        return 0
    return 1 if x.dim() == 3 and x.shape[1] == rows else None


def forward_is(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module runs the forward of `kind`; a subclass may have another one."""
    return isinstance(module, kind) and type(module).forward is kind.forward
