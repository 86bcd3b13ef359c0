"""Keeps, seeds and restores the states of random generators: Python's, NumPy's and torch's.

Torch has one global generator on the CPU and one on each accelerator. Functions here take the
accelerators as a list of devices, empty for the CPU alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


@contextmanager
def keep_random_state(
    devices: Sequence[torch.device] = (),
    *,
    generators: Iterable[torch.Generator] = (),
    torch_seed: int | None = None,
) -> Iterator[None]:
    """Restores every generator at the end, also after an error: Python's, NumPy's, torch's on the
    CPU and on the devices, and the generators given.

    Args:
        devices: accelerators whose generators are restored, too.
        generators: other generators of torch, such as a loader's own (`generators_of`).
        torch_seed: seed of torch's CPU generator inside; None leaves it as it is.

    >>> before = torch.get_rng_state()
    >>> with keep_random_state():
    ...     drawn = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    states = torch_random_states(devices)
    own = [(generator, generator.get_state()) for generator in generators]
    try:
        if torch_seed is not None:
            torch.default_generator.manual_seed(torch_seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        set_torch_random_states(states, devices)
        for generator, state in own:
            generator.set_state(state)


def seed_generators(seed: int, devices: Sequence[torch.device] = ()) -> None:
    """Seeds Python's, NumPy's and torch's generators, torch's on the CPU and on the devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in devices:
        module = torch.get_device_module(device)
        with device if device.type == "mps" else module.device(device):
            module.manual_seed(seed)


def torch_random_states(devices: Sequence[torch.device] = ()) -> list[Tensor]:
    """Return the states of torch's generators: the CPU's, then that of each device."""
    states = [torch.get_rng_state()]
    for device in devices:
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def set_torch_random_states(states: Sequence[Tensor], devices: Sequence[torch.device] = ()) -> None:
    """Restores what `torch_random_states` returned for the same devices."""
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.get_device_module(device).set_rng_state(state, device)


def accelerators_of(model: nn.Module) -> list[torch.device]:
    """Return the accelerators on which a model has parameters; empty on the CPU."""
    found: set[tuple[str, int]] = set()
    for parameter in model.parameters():
        if parameter.device.type not in ("cpu", "meta"):
            found.add((parameter.device.type, parameter.device.index or 0))
    return [torch.device(kind, index) for kind, index in sorted(found)]


def generators_of(loader: Any) -> list[torch.Generator]:
    """Return the generators that a `DataLoader` and its samplers draw from; empty for all else."""
    if not isinstance(loader, DataLoader):
        return []
    holders = (loader, loader.sampler, loader.batch_sampler)
    found = [vars(holder).get("generator") for holder in holders if holder is not None]
    return [generator for generator in found if isinstance(generator, torch.Generator)]
