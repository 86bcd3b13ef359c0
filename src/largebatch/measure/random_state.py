"""What a pass through the model must leave as it was: generators, modes, buffers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards Python's, NumPy's and torch's generators, on the CPU and on the model's devices,
    are as they were.

    >>> model = nn.Linear(1, 1)
    >>> before = torch.get_rng_state()
    >>> with random_state_kept(model):
    ...     drawn = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            for kind, indices in _accelerators(model).items():
                stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_generators(model: nn.Module, seed: int) -> None:
    """Seeds the generators that `random_state_kept` keeps."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for kind, indices in _accelerators(model).items():
        module = torch.get_device_module(kind)
        for index in indices:
            with torch.device(kind, index) if kind == "mps" else module.device(index):
                module.manual_seed(seed)


@contextmanager
def modules_kept(model: nn.Module, *, also: Sequence[Tensor] = ()) -> Iterator[None]:
    """Afterwards the modes and the buffers of all modules, and the tensors in `also`, have the bits
    they had, also after an error."""
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


def _accelerators(model: nn.Module) -> dict[str, list[int]]:
    """Kind of device -> its indices on which the model has parameters."""
    found: dict[str, set[int]] = {}
    for parameter in model.parameters():
        if parameter.device.type not in ("cpu", "meta"):
            found.setdefault(parameter.device.type, set()).add(parameter.device.index or 0)
    return {kind: sorted(indices) for kind, indices in found.items()}


@torch.no_grad()
def _put_back(tensors: Sequence[Tensor], bits: Sequence[Tensor]) -> None:
    for tensor, before in zip(tensors, bits, strict=True):
        if not torch.equal(tensor, before):
            tensor.copy_(before)
