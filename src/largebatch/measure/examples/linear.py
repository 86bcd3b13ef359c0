"""Compute the examples' gradients of linear layers on inputs of shape [B, ..., D]."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import linear

from largebatch.measure.examples.layer import (
    Piece,
    PlainLayer,
    SavedTensors,
    blocks_are_cheaper,
    examples_at_once,
)
from largebatch.measure.squares import squared_norm


class LinearLayer(PlainLayer):
    """Compute the gradients of `nn.Linear` by the cheapest of three formulas.

    Products of norms are used if an example has one position. If an example has several positions,
    the cheaper of two formulas is used: the examples' matrices or Gram matrices.
    """

    can_replace = True

    def keep(
        self, module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> SavedTensors:
        """Return the input, and the squared norm of each row if each example has one position."""
        kept = super().keep(module, args, kwargs)
        return (*kept, _of_rows(kept[0].detach())) if kept[0].dim() == 2 else kept

    def replaces(self, module: nn.Linear, shape: torch.Size, *, rows: int, squares: bool) -> bool:
        length = shape[:-1].numel() // rows
        return length > 1 and (squares or self._blocks(module, length))

    def sqnorm(
        self,
        module: nn.Linear,
        names: Collection[str],
        kept: SavedTensors,
        delta: Tensor,
        rows: int,
    ) -> list[Tensor] | None:
        if len(kept) == 2 and len(kept[1]) == rows:
            of_input = kept[1] if "weight" in names else torch.zeros_like(kept[1])
            return [torch.dot(_of_rows(delta), of_input + 1 if "bias" in names else of_input)]
        a, d = _by_example(kept, delta, rows)
        if "weight" not in names or self._blocks(module, a.shape[1]):
            return None
        step = examples_at_once(rows, elements=2 * a.shape[1] ** 2, like=a)
        scalars = [
            torch.dot(
                torch.bmm(x, x.transpose(1, 2)).view(-1), torch.bmm(y, y.transpose(1, 2)).view(-1)
            )
            for x, y in zip(a.split(step), d.split(step), strict=True)
        ]
        return [*scalars, squared_norm(d.sum(1))] if "bias" in names else scalars

    def squares(
        self,
        module: nn.Linear,
        names: Collection[str],
        kept: SavedTensors,
        delta: Tensor,
        rows: int,
    ) -> dict[str, Tensor] | None:
        a, d = _by_example(kept, delta, rows)
        if a.shape[1] > 1:
            return None
        d = d[:, 0].square()
        found = {"weight": d.t() @ a[:, 0].square()} if "weight" in names else {}
        return {**found, "bias": d.sum(0)} if "bias" in names else found

    def pieces(
        self,
        module: nn.Linear,
        names: Collection[str],
        kept: SavedTensors,
        delta: Tensor,
        rows: int,
    ) -> Iterator[Piece]:
        a, d = _by_example(kept, delta, rows)
        if "bias" in names:
            yield "bias", d.sum(1)
        if "weight" not in names:
            return
        step = examples_at_once(rows, elements=a.shape[2] * d.shape[2], like=a)
        found = a.new_empty(step, d.shape[2], a.shape[2])
        for x, y in zip(a.split(step), d.split(step), strict=True):
            yield "weight", torch.bmm(y.transpose(1, 2), x, out=found[: len(x)])

    def along(
        self, module: nn.Linear, values: dict[str, Tensor], kept: SavedTensors
    ) -> Tensor | None:
        weight = values.get("weight")
        if weight is None:
            return None
        return linear(kept[0], weight, values.get("bias"))

    def _blocks(self, module: nn.Linear, length: int) -> bool:
        return blocks_are_cheaper(
            length=length,
            inputs=module.in_features,
            outputs=module.out_features,
            replace=self._replace,
        )


def _of_rows(x: Tensor) -> Tensor:
    """Return the squared norm of each row, without temporary memory of the size of x."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    return vector_norm(x, dim=1, dtype=wide).square_()


def _by_example(kept: SavedTensors, delta: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return the input as [rows, T, D] and the output's gradient as [rows, T, O]."""
    a = kept[0]
    return a.reshape(rows, -1, a.shape[-1]), delta.reshape(rows, -1, delta.shape[-1])
