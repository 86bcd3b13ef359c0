"""Give each example's gradient of a parameter that the model uses directly, outside of a module."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from largebatch.measure.examples.layer import Piece, PlainLayer, SavedTensors


class BareLayer(PlainLayer):
    """Give the examples' gradients of a single parameter, which need no computation."""

    def pieces(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> Any:
        piece: Piece = ("", delta.reshape(rows, -1, *delta.shape[1:]).sum(1))
        yield piece
