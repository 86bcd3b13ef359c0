"""Save, seed and restore the random generators of Python, NumPy and torch.

torch has one global generator on the CPU and one on each accelerator. The functions of this module
take a list of accelerators, which is empty if only the CPU is used.
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
    """Restore the random generators of Python, NumPy and torch when the context ends.

    The random generators are restored after an error, too.

    Args:
        devices: Accelerators whose generators are restored, too.
        generators: Other torch generators to restore, such as the generators of a data loader
            (`generators_of`). torch_seed: Seed of torch's CPU generator within the context; None
            keeps the generator's state.

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
    """Seed the generators of Python, NumPy and torch (on the CPU and on `devices`)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in devices:
        module = torch.get_device_module(device)
        with device if device.type == "mps" else module.device(device):
            module.manual_seed(seed)


def torch_random_states(devices: Sequence[torch.device] = ()) -> list[Tensor]:
    """Return the states of torch's generators: first on the CPU, then on each of `devices`."""
    states = [torch.get_rng_state()]
    for device in devices:
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def set_torch_random_states(states: Sequence[Tensor], devices: Sequence[torch.device] = ()) -> None:
    """Restore the states that `torch_random_states` returned for the same devices."""
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.get_device_module(device).set_rng_state(state, device)


def accelerators_of(model: nn.Module) -> list[torch.device]:
    """Return the accelerators on which a model has parameters; empty for a model on the CPU."""
    found: set[tuple[str, int]] = set()
    for parameter in model.parameters():
        if parameter.device.type not in ("cpu", "meta"):
            found.add((parameter.device.type, parameter.device.index or 0))
    return [torch.device(kind, index) for kind, index in sorted(found)]


def generators_of(loader: Any) -> list[torch.Generator]:
    """Return the generators of a `DataLoader` and its samplers; empty for other objects."""
    if not isinstance(loader, DataLoader):
        return []
    holders = (loader, loader.sampler, loader.batch_sampler)
    found = [vars(holder).get("generator") for holder in holders if holder is not None]
    return [generator for generator in found if isinstance(generator, torch.Generator)]
