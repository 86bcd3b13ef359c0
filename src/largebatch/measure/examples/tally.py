"""Add up the examples' gradients of one module call, or of calls that share a parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from largebatch.measure.examples.layer import Layer, Piece, SavedTensors, dimension_of
from largebatch.measure.squares import ROW, squared_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedSums:
    """Define which sums over the examples' gradients g_i are requested in a training step.

    Args:
        sqnorm: Whether sum_i |g_i|^2 is requested.
        squares: Whether sum_i g_i^2 is requested for each coordinate.
        products: Whether the inner products <g_i, g> with the step's gradient g are requested.
    """

    sqnorm: bool = False
    squares: bool = False
    products: bool = False

    def __bool__(self) -> bool:
        return self.sqnorm or self.squares or self.products


class ExampleSums:
    """Add up the gradients of examples, and the squares of these gradients.

    Mutable: holds the sums.

    Args:
        want: Sums over the examples that are requested. gradients: Whether the sum of the examples'
            gradients, the parameter's gradient, is requested, too. check: Whether the sums of the
            examples' gradients are compared with autograd's gradients. The comparison needs the
            norms of the examples' gradients, because the gradients may cancel each other.
    """

    def __init__(self, want: WantedSums, *, gradients: bool, check: bool = False) -> None:
        self._want, self._gradients, self._check = want, gradients or check, check
        self.scalars: list[Tensor] = []
        self.squares: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.sizes: dict[str, Tensor] = {}

    def take(self, pieces: Iterable[Piece]) -> None:
        """Add gradients of examples, which may be overwritten by this method."""
        for name, piece in pieces:
            if self._gradients:
                _add(self.gradients, name, piece)
            if self._check:
                size = squared_norm(piece)
                self.sizes[name] = self.sizes[name] + size if name in self.sizes else size
            if self._want.squares:
                if len(piece) == 1 and name in self.squares:
                    self.squares[name].addcmul_(piece[0], piece[0])
                else:
                    _add(self.squares, name, piece.square_())
            elif self._want.sqnorm:
                if piece.numel() > ROW or not piece.is_contiguous():
                    self.scalars.append(squared_norm(piece))
                else:
                    row = piece.view(-1)
                    self.scalars.append(torch.dot(row, row))

    def measure(
        self,
        layer: Layer,
        module: Any,
        names: Collection[str],
        kept: SavedTensors,
        delta: Any,
        rows: int,
    ) -> None:
        """Add one module call, by a faster formula if no example's own gradient is needed."""
        if not self._gradients:
            if self._want.squares:
                squares = layer.squares(module, names, kept, delta, rows)
                if squares is not None:
                    self.squares = squares
                    return
            elif self._want.sqnorm:
                scalars = layer.sqnorm(module, names, kept, delta, rows)
                if scalars is not None:
                    self.scalars = scalars
                    return
            else:
                return
        self.take(layer.pieces(module, names, kept, delta, rows))


def _add(sums: dict[str, Tensor], name: str, piece: Tensor) -> None:
    if name in sums:
        sums[name].add_(piece[0] if len(piece) == 1 else over_examples(piece))
    else:
        sums[name] = piece[0].clone() if len(piece) == 1 else over_examples(piece)


def over_examples(piece: Tensor) -> Tensor:
    """Return the sum over the first dimension, computed in memory order.

    `Tensor.sum` is ten times slower if the first dimension is not the outermost one in memory.

    >>> over_examples(torch.ones(2, 3))
    tensor([2., 2., 2.])
    """
    if piece.is_contiguous():
        return piece.sum(0)
    order = sorted(range(piece.dim()), key=piece.stride, reverse=True)
    along = piece.permute(order)
    at = order.index(0)
    if at == 0 or not along.is_contiguous():
        return piece.sum(0)
    sizes = (*along.shape[:at], *along.shape[at + 1 :])
    summed = along.reshape(prod(along.shape[:at]), len(piece), -1).sum(1).view(sizes)
    rest = [dim - 1 for dim in order if dim]
    return summed.permute([rest.index(dim) for dim in range(len(rest))])


def join_pieces(pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """Return the examples' gradients of each parameter, concatenated over all examples."""
    by_name: dict[str, list[Tensor]] = {}
    for name, piece in pieces:
        by_name.setdefault(name, []).append(piece.clone())
    return {name: torch.cat(parts) for name, parts in by_name.items()}


def one_by_one(
    layer: Layer, parts: int, kept: SavedTensors, delta: Any
) -> Iterator[tuple[SavedTensors, Any]]:
    """Yield the input and the output's gradient of one example, or group of examples, at a time.

    A tensor that all examples share is yielded with each example.
    """

    def cut(x: Tensor, at: int) -> Tensor:
        if layer.keeps_output:
            dim = dimension_of(x, parts * layer.times)
            return x if dim is None else x.narrow(dim, at * layer.times, layer.times)
        times = len(x) // parts
        return x[at * times : (at + 1) * times]

    for at in range(parts):
        one = tuple(cut(d, at) for d in delta) if isinstance(delta, tuple) else cut(delta, at)
        yield tuple(cut(x, at) for x in kept), one
