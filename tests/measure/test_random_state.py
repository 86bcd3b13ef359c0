"""Random generators: what is seeded, kept and restored."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from largebatch.measure.module_state import keep_module_state
from largebatch.measure.random_state import (
    accelerators_of,
    generators_of,
    keep_random_state,
    seed_generators,
    set_torch_random_states,
    torch_random_states,
)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_every_generator_is_restored_as_if_nothing_was_drawn() -> None:
    seed_generators(3)
    expected = draws()
    seed_generators(3)
    own = torch.Generator().manual_seed(5)
    state = own.get_state()
    with keep_random_state(generators=[own]):
        seed_generators(8)
        draws()
        torch.rand(3, generator=own)
    assert draws() == expected
    assert torch.equal(own.get_state(), state)


def test_generators_are_restored_after_an_error() -> None:
    seed_generators(3)
    expected = draws()
    seed_generators(3)
    with pytest.raises(KeyError), keep_random_state():
        draws()
        raise KeyError
    assert draws() == expected


def test_a_torch_seed_leaves_the_generators_of_python_and_numpy() -> None:
    seed_generators(3)
    python, numpy, _ = draws()
    seed_generators(3)
    with keep_random_state(torch_seed=11):
        first = draws()
    assert first[:2] == (python, numpy)
    assert first[2] == float(torch.rand((), generator=torch.Generator().manual_seed(11)))


def test_torchs_states_can_be_held_and_set_later() -> None:
    states = torch_random_states()
    first = torch.rand(3)
    set_torch_random_states(states)
    assert torch.equal(torch.rand(3), first)


def test_states_of_other_devices_than_asked_for_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        set_torch_random_states(torch_random_states() * 2)


def test_a_model_on_the_cpu_or_without_storage_has_no_accelerator() -> None:
    assert accelerators_of(nn.Linear(2, 2)) == []
    assert accelerators_of(nn.Linear(2, 2, device="meta")) == []


def test_a_loaders_own_generators_are_found() -> None:
    first, second = torch.Generator(), torch.Generator()
    dataset = TensorDataset(torch.arange(4.0))
    sampler = RandomSampler(dataset, generator=second)
    loader = DataLoader(dataset, sampler=sampler, generator=first)
    assert generators_of(loader) == [first, second]
    assert generators_of([1, 2]) == []


def test_modes_buffers_and_the_tensors_given_come_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyError), keep_module_state(model, also=list(model.parameters())):
        model(torch.rand(8, 2))
        model.eval()
        with torch.no_grad():
            model[0].weight.add_(1.0)  # type: ignore[operator,union-attr]
        raise KeyError
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_devices_generator_is_seeded_kept_and_restored() -> None:
    device = torch.device("cuda", 0)
    assert accelerators_of(nn.Linear(2, 2, device=device)) == [device]
    seed_generators(3, [device])
    expected = torch.rand(3, device=device)
    seed_generators(3, [device])
    with keep_random_state([device]):
        torch.rand(5, device=device)
    assert torch.equal(torch.rand(3, device=device), expected)
