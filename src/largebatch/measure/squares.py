"""Squared norms of tensors in float32, as few and as cheap operations as the device allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DOT_LIMIT = 1 << 24
"""Above this many elements a float32 dot product may lose digits: rows are summed apart."""


def squared_norm(tensor: Tensor) -> Tensor:
    """|tensor|^2 as a 0-dim float32 tensor on its device; half precision is squared in float32.

    >>> squared_norm(torch.tensor([3.0, 4.0])).item()
    25.0
    """
    if tensor.dtype is torch.float32 and tensor.is_contiguous() and tensor.numel() <= _DOT_LIMIT:
        flat = tensor if tensor.dim() == 1 else tensor.view(-1)
        return torch.dot(flat, flat)
    if tensor.numel() > _DOT_LIMIT:
        rows = [squared_norm(row) for row in tensor.reshape(-1).split(_DOT_LIMIT)]
        return torch.stack(rows).sum()
    return torch.linalg.vector_norm(tensor, dtype=torch.float32).square()


def squared_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The squared norm of each tensor; on an accelerator in a few fused kernels, so fewer scalars
    may come back than tensors went in: their sum is what counts."""
    if not tensors or tensors[0].device.type == "cpu":
        return [squared_norm(tensor) for tensor in tensors]
    norms = torch._foreach_norm(list(tensors), 2, dtype=torch.float32)
    return [torch.stack(norms).square().sum()]
