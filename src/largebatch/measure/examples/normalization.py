"""Normalization within one example: its weight multiplies, and its bias follows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, group_norm, layer_norm, rms_norm

from largebatch.measure.examples.layer import Piece, PlainLayer, SavedTensors


class NormalizationLayer(PlainLayer):
    """`nn.LayerNorm`, `nn.RMSNorm`, `nn.GroupNorm`, and `nn.BatchNorm` whose statistics are fixed.

    A weight's gradient is the sum over positions of delta times the normalized input."""

    may_replace = True

    def replaces(self, module: Any, shape: torch.Size, *, rows: int, squares: bool) -> bool:
        return True

    def pieces(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> Iterator[Piece]:
        (x,) = kept
        if "bias" in names:
            yield "bias", _over_positions(module, delta, rows)
        if "weight" in names:
            yield "weight", _over_positions(module, _normalized(module, x).mul_(delta), rows)

    def along(self, module: Any, values: dict[str, Tensor], kept: SavedTensors) -> Tensor | None:
        if "weight" not in values:
            return None
        (x,) = kept
        scaled = _normalized(module, x) * _placed(module, values["weight"], x)
        bias = values.get("bias")
        return scaled if bias is None else scaled + _placed(module, bias, x)


def _placed(module: Any, vector: Tensor, x: Tensor) -> Tensor:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return vector
    return vector.view(-1, *(1,) * (x.dim() - 2))


def _normalized(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return layer_norm(x, list(module.normalized_shape), eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return rms_norm(x, list(module.normalized_shape), eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return group_norm(x, module.num_groups, eps=module.eps)
    return batch_norm(x, module.running_mean, module.running_var, eps=module.eps)


def _over_positions(module: Any, values: Tensor, rows: int) -> Tensor:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return values.reshape(rows, -1, *module.normalized_shape).sum(1)
    return values.reshape(rows, -1, values.shape[1], values[0, 0].numel()).sum((1, 3))
