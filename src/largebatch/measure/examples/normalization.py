"""Compute the examples' gradients of normalization layers, which have a weight and a bias."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, group_norm, layer_norm, rms_norm
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.measure.examples.layer import Piece, PlainLayer, SavedTensors


class NormalizationLayer(PlainLayer):
    """Compute the gradients of `nn.LayerNorm`, `nn.RMSNorm`, `nn.GroupNorm` and `nn.BatchNorm`.

    The gradient of the weight is the sum over positions of the normalized input times delta, the
    gradient of the output. If batch normalization uses the statistics of the batch, the
    contribution of an example is the sum over its own rows, with the normalized input and delta of
    the batch.
    """

    can_replace = True

    def keep(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SavedTensors:
        """Return the input, and the mean and variance for each row if the batch determines them."""
        (x,) = super().keep(module, args, kwargs)
        if not (isinstance(module, _BatchNorm) and uses_batch_statistics(module)):
            return (x,)
        return x, _batch_statistics(x.detach())

    def replaces(self, module: Any, shape: torch.Size, *, rows: int, squares: bool) -> bool:
        return True

    def pieces(
        self, module: Any, names: Collection[str], kept: SavedTensors, delta: Tensor, rows: int
    ) -> Iterator[Piece]:
        if "bias" in names:
            yield "bias", _over_positions(module, delta, rows)
        if "weight" in names:
            yield "weight", _over_positions(module, _normalized(module, kept).mul_(delta), rows)

    def along(self, module: Any, values: dict[str, Tensor], kept: SavedTensors) -> Tensor | None:
        if "weight" not in values:
            return None
        x = kept[0]
        scaled = _normalized(module, kept) * _placed(module, values["weight"], x)
        bias = values.get("bias")
        return scaled if bias is None else scaled + _placed(module, bias, x)


def uses_batch_statistics(module: _BatchNorm) -> bool:
    """Return whether batch normalization computes mean and variance from the batch."""
    return module.training or module.running_mean is None


def _batch_statistics(x: Tensor) -> Tensor:
    """Return mean and variance of each channel over the batch, as [rows, 2, C].

    All rows of the result share the same memory.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
    return torch.stack([mean, variance]).expand(len(x), 2, -1)


def _placed(module: Any, vector: Tensor, x: Tensor) -> Tensor:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return vector
    return vector.view(-1, *(1,) * (x.dim() - 2))


def _normalized(module: Any, kept: SavedTensors) -> Tensor:
    x = kept[0]
    if isinstance(module, nn.LayerNorm):
        return layer_norm(x, list(module.normalized_shape), eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return rms_norm(x, list(module.normalized_shape), eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return group_norm(x, module.num_groups, eps=module.eps)
    if len(kept) == 2:
        mean, variance = kept[1][0].to(x.dtype)
        return batch_norm(x, mean, variance, eps=module.eps)
    return batch_norm(x, module.running_mean, module.running_var, eps=module.eps)


def _over_positions(module: Any, values: Tensor, rows: int) -> Tensor:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return values.reshape(rows, -1, *module.normalized_shape).sum(1)
    return values.reshape(rows, -1, values.shape[1], values[0, 0].numel()).sum((1, 3))
