"""What is added up of the examples' gradients, of one call or of several with one parameter."""

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
    """What is asked of the examples' gradients in a step.

    Args:
        sqnorm: sum_i |g_i|^2.
        squares: sum_i g_i^2, coordinate by coordinate.
        products: <g_i, g> with the step's gradient g.
    """

    sqnorm: bool = False
    squares: bool = False
    products: bool = False

    def __bool__(self) -> bool:
        return self.sqnorm or self.squares or self.products


class ExampleSums:
    """Adds up pieces: squares of all of them, and what the parameters' gradients are.

    Mutable: holds the sums.

    Args:
        want: what is asked for.
        gradients: whether the sum of the pieces is asked for, too: the parameter's gradient.
        check: whether the gradients are to be compared with autograd's, which needs to know how
            large the pieces are: sums may cancel.
    """

    def __init__(self, want: WantedSums, *, gradients: bool, check: bool = False) -> None:
        self._want, self._gradients, self._check = want, gradients or check, check
        self.scalars: list[Tensor] = []
        self.squares: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.sizes: dict[str, Tensor] = {}

    def take(self, pieces: Iterable[Piece]) -> None:
        """Adds each of these, which may be overwritten."""
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
        """Adds one call of a module, by a shortcut where no pieces are needed."""
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
    """The sum over the first dimension, along memory: torch's own is ten times slower where that
    dimension is not the outermost one.

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
    """Return each parameter's pieces in one tensor over all examples."""
    by_name: dict[str, list[Tensor]] = {}
    for name, piece in pieces:
        by_name.setdefault(name, []).append(piece.clone())
    return {name: torch.cat(parts) for name, parts in by_name.items()}


def one_by_one(
    layer: Layer, parts: int, kept: SavedTensors, delta: Any
) -> Iterator[tuple[SavedTensors, Any]]:
    """Input and output gradient of each part alone; what no part has for itself goes with all of
    them."""

    def cut(x: Tensor, at: int) -> Tensor:
        if layer.keeps_output:
            dim = dimension_of(x, parts * layer.times)
            return x if dim is None else x.narrow(dim, at * layer.times, layer.times)
        times = len(x) // parts
        return x[at * times : (at + 1) * times]

    for at in range(parts):
        one = tuple(cut(d, at) for d in delta) if isinstance(delta, tuple) else cut(delta, at)
        yield tuple(cut(x, at) for x in kept), one
