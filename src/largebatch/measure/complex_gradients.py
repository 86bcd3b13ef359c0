"""Treat the gradients of complex parameters as pairs of real numbers.

torch may conjugate a gradient lazily: after a model used `weight.conj()`, `weight.grad.is_conj()`
is True. The foreach functions of torch cannot write to a lazily conjugated tensor, so each lazily
conjugated tensor is changed separately.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as real numbers with an additional last dimension of size 2.

    A tensor that is not complex is returned unchanged.

    >>> as_real(torch.tensor([3.0 + 4.0j]))
    tensor([[3., 4.]])
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a detached, dense tensor of real numbers, in the shape of `as_real`."""
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return as_real(dense.detach())


def copy_real(into: Tensor, real: Tensor) -> None:
    """Copy real numbers, in the shape of `as_real(into)`, to a real or complex tensor."""
    into.copy_(torch.complex(*real.unbind(-1)) if into.is_complex() else real)


def multiply_each(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply every tensor in place, in as few kernels as possible."""
    plain = [tensor for tensor in tensors if not _lazy(tensor)]
    if plain:
        torch._foreach_mul_(plain, factor)
    if len(plain) < len(tensors):
        for tensor in filter(_lazy, tensors):
            tensor.mul_(factor)


def add_each(totals: Sequence[Tensor], terms: Sequence[Tensor]) -> None:
    """Add one term to each total in place, in as few kernels as possible."""
    pairs = list(zip(totals, terms, strict=True))
    plain = [(total, term) for total, term in pairs if not _lazy(total)]
    if plain:
        into, added = map(list, zip(*plain, strict=True))
        torch._foreach_add_(into, added)
    if len(plain) < len(pairs):
        for total, term in pairs:
            if _lazy(total):
                total.add_(term)


def _lazy(tensor: Tensor) -> bool:
    return tensor.is_conj() or tensor.is_neg()
