"""Restore the modes and the buffers of a model after passes that must not change them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def keep_module_state(model: nn.Module, *, also: Sequence[Tensor] = ()) -> Iterator[None]:
    """Restore the modes and the buffers of all modules bit by bit when the context ends.

    The tensors in `also` are restored, too. Modes, buffers and tensors are also restored after an
    error.

    >>> norm = nn.BatchNorm1d(1)
    >>> with keep_module_state(norm):
    ...     _ = norm(torch.rand(4, 1))
    >>> int(norm.num_batches_tracked)
    0
    """
    tensors = [*also, *model.buffers()]
    bits = [tensor.detach().clone() for tensor in tensors]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, before in buffers:
            module._buffers.update(before)
        _put_back(tensors, bits)
        for module, training in modes:
            module.training = training


@torch.no_grad()
def _put_back(tensors: Sequence[Tensor], bits: Sequence[Tensor]) -> None:
    for tensor, before in zip(tensors, bits, strict=True):
        if not torch.equal(tensor, before):
            tensor.copy_(before)
