"""Define the interface that gives the examples' gradients of one type of module.

Example i's contribution to the gradient of a parameter is computed from the module's input a and
the gradient delta of the module's output. For a linear layer, the contribution is the matrix sum_t
delta_it * a_it^T over positions t. The squared norm of the contribution can be computed without the
matrix:

    |sum_t delta_t * a_t^T|^2 = sum_{t,s} <a_t, a_s> * <delta_t, delta_s>.

For one position per example, the squared norm of the contribution is |delta|^2 * |a|^2, and the sum
of the examples' squared gradients is (delta^2)^T (a^2) for each coordinate. A convolution is a
linear layer over patches of its input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

SavedTensors = tuple[Tensor, ...]
"""Input tensors of a module, kept until the backward call, with the examples as first dimension."""

Piece = tuple[str, Tensor]
"""Pair of a parameter's name and its gradients for consecutive examples, [b, *shape]."""

CPU_BYTES, DEVICE_BYTES = 1 << 20, 1 << 26
"""Largest size of the gradients computed at a time, in bytes: on a CPU and on an accelerator.

The limit on a CPU is smaller than on an accelerator, because the gradients must fit into the CPU's
cache.
"""

BLOCK_COST = 20.0
"""Time to write, square and add up one element of an example's matrix.

The unit of the time is one multiplication in a matrix product. On a CPU with AVX-512 at 60 to 100
GFLOP/s, the time was between 15 and 25 units for matrices between 128 x 128 and 512 x 128.
"""

GRAM_COST = 1.2
"""Time of one multiplication in the products of two Gram matrices, in the unit of `BLOCK_COST`."""


class Layer(Protocol):
    """Define how one type of module gives its examples' gradients.

    In all methods, `names` are the names of the requested parameters, and `rows` is the number of
    examples or of groups of examples. A module that was called with several rows per example gives
    one gradient per example, too.

    Attributes:
        keeps_output: Whether autograd may keep the module's output for the backward call.
        may_replace: Whether `replaces` may return True.
        times: Number of examples in each separately measured group, for a module that must run a
            second time.
    """

    @property
    def keeps_output(self) -> bool: ...
    @property
    def may_replace(self) -> bool: ...
    @property
    def times(self) -> int: ...

    def keep(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SavedTensors:
        """Return the input tensors that are needed in the backward call."""
        ...

    def replaces(self, module: Any, shape: torch.Size, *, rows: int, squares: bool) -> bool:
        """Return whether the weight's gradient should be summed from the examples' gradients.

        If `replaces` returns False, autograd computes the weight's gradient. If the examples'
        gradients are computed anyway, summing them is cheaper than a second computation by
        autograd.

        Args:
            module: The module.
            shape: Shape of the module's input.
            rows: Number of examples, or of groups of examples.
            squares: Whether squares of the examples' gradients are requested.
        """
        ...

    def sqnorm(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> list[Tensor] | None:
        """Return scalars whose sum is sum_i |g_i|^2; None if computing each g_i is cheaper."""
        ...

    def squares(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> dict[str, Tensor] | None:
        """Return sum_i g_i^2 for each coordinate; None if computing each g_i is cheaper."""
        ...

    def pieces(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> Iterator[Piece]:
        """Yield the gradient of each parameter for a few examples at a time, in order.

        The caller and the next gradient of the same parameter may overwrite a yielded tensor.
        """
        ...

    def along(self, module: Any, values: dict[str, Tensor], kept: SavedTensors) -> Tensor | None:
        """Return the module's output with `values` in place of the parameters.

        The inner product of the returned output with delta_i, the gradient of the output for
        example i, is <g_i, values>. A parameter that is missing in `values` counts as 0. The result
        is None if the module's output is not linear in the parameters.
        """
        ...


class PlainLayer:
    """Implement the methods that most types of modules have in common.

    The module's first argument is kept until the backward call, and all sums are computed from the
    examples' gradients.

    Args:
        replace: Whether the parameters' gradients may be summed from the examples' gradients
            instead of being computed by autograd.
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
    """Return whether an example's matrix [outputs, inputs] is cheaper than two Gram matrices.

    The Gram matrices have the shape [length, length]. If `replace` is True, the examples' matrices
    replace the weight's gradient, which saves the matrix product for the weight's gradient.

    >>> blocks_are_cheaper(length=64, inputs=128, outputs=512, replace=True)
    True
    >>> blocks_are_cheaper(length=64, inputs=128, outputs=512, replace=False)
    False
    """
    cost = BLOCK_COST if replace else BLOCK_COST + length
    return cost * inputs * outputs < GRAM_COST * length**2 * (inputs + outputs)


def examples_at_once(rows: int, *, elements: int, like: Tensor) -> int:
    """Return how many examples' gradients are computed at a time.

    Args:
        rows: Number of examples.
        elements: Number of elements in one example's gradient.
        like: Tensor with the type and the device of the gradients.
    """
    limit = CPU_BYTES if like.device.type == "cpu" else DEVICE_BYTES
    return max(1, min(rows, limit // max(1, elements * like.element_size())))


def dimension_of(x: Tensor, rows: int) -> int | None:
    """Return the dimension of the examples in a tensor of an unknown module.

    The examples are the first dimension, or the second dimension as in the state of a recurrent
    layer. The dimension is None if all examples share the tensor.
    """
    if x.dim() and len(x) == rows:
        return 0
    return 1 if x.dim() == 3 and x.shape[1] == rows else None


def forward_is(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module runs the forward method of `kind`, which a subclass may override."""
    return isinstance(module, kind) and type(module).forward is kind.forward
