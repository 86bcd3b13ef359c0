"""Record a forward pass of the first step, so that a copy of the model can repeat the pass."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.measure.random_state import set_torch_random_states, torch_random_states

MOST = 8
"""Largest number of recorded forward passes; a step with more forward passes is not repeated."""


@dataclass(slots=True, kw_only=True)
class SeenForward:
    """Record one forward pass `model(*args, **kwargs)`, its outputs and their gradients.

    Mutable: numbers of the outputs, and the outputs' gradients, are added later.

    Args:
        args, kwargs: Arguments of the model.
        autocast: Device type and dtype of autocast; None if autocast is off.
        devices: Accelerators that the model may use.
        states: States of the generators of Python, NumPy and torch when the forward pass began.
            prints: Two numbers computed from each output, to compare a repeated output with the
            original output. gradients: Gradient of each output tensor, by the tensor's position
            among the outputs.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[str, torch.dtype] | None
    devices: list[torch.device]
    states: tuple[Any, Any, list[Tensor]]
    prints: list[Tensor] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def alike(self, outputs: list[Tensor], *, limit: float) -> bool:
        """Return whether outputs equal the recorded outputs up to the relative error `limit`."""
        if len(outputs) != len(self.prints):
            return False
        pairs = zip(map(print_of, outputs), self.prints, strict=True)
        return all(bool((a - b).abs().max() <= limit * b.abs().max()) for a, b in pairs)

    @contextmanager
    def as_it_began(self) -> Iterator[None]:
        """Set the random generators and autocast as when the forward pass began.

        The random generators are not restored when the context ends.
        """
        python, numpy, states = self.states
        random.setstate(python)
        np.random.set_state(numpy)
        set_torch_random_states(states, self.devices)
        if self.autocast is None:
            yield
            return
        device, dtype = self.autocast
        with torch.autocast(device, dtype=dtype):
            yield


def seen_forward(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, device: str, devices: list[torch.device]
) -> SeenForward:
    """Return the record of a forward pass that begins now.

    Args:
        args, kwargs: Arguments of the model.
        device: Device type of the first input, such as "cpu".
        devices: Accelerators that the model may use.
    """
    autocast = None
    if torch.is_autocast_enabled(device):
        autocast = device, torch.get_autocast_dtype(device)
    states = random.getstate(), np.random.get_state(legacy=False), torch_random_states(devices)
    return SeenForward(args=args, kwargs=kwargs, autocast=autocast, devices=devices, states=states)


def print_of(output: Tensor) -> Tensor:
    """Return the norm of a tensor and the sum of every second element, in one tensor."""
    real = torch.view_as_real(output) if output.is_complex() else output
    flat = real.detach().flatten().to(torch.float32)
    return torch.stack([flat.norm(), flat[::2].sum()])
