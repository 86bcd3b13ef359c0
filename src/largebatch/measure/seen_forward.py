"""What is kept of a forward pass of the first step, so that a copy of the model can repeat it."""

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
"""Forward passes that are kept; a step with more is not repeated."""


@dataclass(slots=True, kw_only=True)
class SeenForward:
    """One forward pass: `model(*args, **kwargs)`, under `autocast` (device, dtype).

    Mutable: the outputs and their gradients come later.

    Args:
        args, kwargs: of the model.
        autocast: None if it is off.
        devices: accelerators that it may use.
        states: of Python's, NumPy's and torch's generators when it began.
        prints: two numbers of each output, which tell whether it came out the same again.
        gradients: position among the output's tensors -> its gradient in the backward.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[str, torch.dtype] | None
    devices: list[torch.device]
    states: tuple[Any, Any, list[Tensor]]
    prints: list[Tensor] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def alike(self, outputs: list[Tensor], *, limit: float) -> bool:
        """Return whether these outputs are those that were seen."""
        if len(outputs) != len(self.prints):
            return False
        pairs = zip(map(print_of, outputs), self.prints, strict=True)
        return all(bool((a - b).abs().max() <= limit * b.abs().max()) for a, b in pairs)

    @contextmanager
    def as_it_began(self) -> Iterator[None]:
        """Run with the generators and the autocast of the pass; generators are not restored."""
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
    """Return a forward pass that begins; `device` is the kind of its first input."""
    autocast = None
    if torch.is_autocast_enabled(device):
        autocast = device, torch.get_autocast_dtype(device)
    states = random.getstate(), np.random.get_state(legacy=False), torch_random_states(devices)
    return SeenForward(args=args, kwargs=kwargs, autocast=autocast, devices=devices, states=states)


def print_of(output: Tensor) -> Tensor:
    """Return the norm of a tensor and the sum of every second element."""
    real = torch.view_as_real(output) if output.is_complex() else output
    flat = real.detach().flatten().to(torch.float32)
    return torch.stack([flat.norm(), flat[::2].sum()])
