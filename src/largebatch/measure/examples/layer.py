"""Define how one type of module gives the gradients of its parameters for each example.

Example i's contribution to the gradient of a parameter is computed from the module's input a and
the gradient delta of the module's output. For a linear layer the contribution is the matrix sum_t
delta_it a_it^T over positions t. The squared norm of the contribution can be computed without the
matrix:

    |sum_t delta_t a_t^T|^2 = sum_{t,s} <a_t, a_s> <delta_t, delta_s>.

For one position per example, the squared norm is |delta|^2 |a|^2, and the sum of the examples'
squared gradients is (delta^2)^T (a^2) for each coordinate. A convolution is a linear layer over
patches of its input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

SavedTensors = tuple[Tensor, ...]
"""Tensors of a module's input that are kept until the backward call, with examples first."""

Piece = tuple[str, Tensor]
"""Pair of a parameter's name and its gradients for consecutive examples, [b, *shape]."""

CPU_BYTES, DEVICE_BYTES = 1 << 20, 1 << 26
"""Largest size of a piece in bytes: on a CPU, to fit into its cache, and on an accelerator."""

BLOCK_COST = 20.0
"""Time to write, square and add up one element of an example's matrix.

The unit is the time of one multiplication in a matrix product. On a CPU with AVX-512 at 60 to 100
GFLOP/s, 15 to 25 was measured for matrices between 128 x 128 and 512 x 128.
"""

GRAM_COST = 1.2
"""Time of one multiplication in the products of two Gram matrices, in the unit of `BLOCK_COST`."""


class Layer(Protocol):
    """Define the interface of one type of module.

    In all methods, `names` are the names of the requested parameters, and `rows` is the number of
    examples or of groups of examples. A module that was called with k rows per example also gives
    `rows` gradients.

    Attributes:
        keeps_output: Whether autograd may keep the module's output for the backward call.
        may_replace: Whether `replaces` may return True.
        times: Number of examples in each part, for a module that must run a second time.
    """

    @property
    def keeps_output(self) -> bool: ...
    @property
    def may_replace(self) -> bool: ...
    @property
    def times(self) -> int: ...

    def keep(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SavedTensors:
        """Return the tensors of the input that are needed in the backward call."""
        ...

    def replaces(self, module: Any, shape: torch.Size, *, rows: int, squares: bool) -> bool:
        """Return whether the weight's gradient should be summed from the examples' gradients.

        If `replaces` returns False, autograd computes the weight's gradient. If the examples'
        gradients are computed anyway, summing the examples' gradients is cheaper.

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
        """Return scalars whose sum is sum_i |g_i|^2; None if pieces are cheaper."""
        ...

    def squares(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> dict[str, Tensor] | None:
        """Return sum_i g_i^2 for each coordinate; None if pieces are cheaper."""
        ...

    def pieces(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> Iterator[Piece]:
        """Yield the gradient of each parameter for a few examples at a time, in order.

        A piece may be overwritten by the caller and by the next piece of the parameter.
        """
        ...

    def along(self, module: Any, values: dict[str, Tensor], kept: SavedTensors) -> Tensor | None:
        """Return the module's output with `values` in place of the parameters.

        The inner product of the returned output with delta_i is <g_i, values>. A missing parameter
        counts as 0. The result is None if the output is not linear in the parameters.
        """
        ...


class PlainLayer:
    """Implement what most layers have in common.

    The module's first argument is kept, and all results are computed from the examples' gradients.

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

    The Gram matrices have the shape [length, length]. If the matrix replaces the weight's gradient
    (`replace`), the matrix product for that gradient is saved.

    >>> blocks_are_cheaper(length=64, inputs=128, outputs=512, replace=True)
    True
    >>> blocks_are_cheaper(length=64, inputs=128, outputs=512, replace=False)
    False
    """
    cost = BLOCK_COST if replace else BLOCK_COST + length
    return cost * inputs * outputs < GRAM_COST * length**2 * (inputs + outputs)


def examples_at_once(rows: int, *, elements: int, like: Tensor) -> int:
    """Return the number of examples whose gradients are computed at a time.

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
    layer. The result is None if all examples share the tensor.
    """
    if x.dim() and len(x) == rows:
        return 0
    return 1 if x.dim() == 3 and x.shape[1] == rows else None


def forward_is(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module runs the forward method of `kind`; a subclass may override it."""
    return isinstance(module, kind) and type(module).forward is kind.forward
