"""The probe on two ranks, with samples of their own and with the same ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from distributed import run_on_ranks
from largebatch.workbench.studies.probe.probe import probe_run
from largebatch.workbench.studies.probe.result import ProbeResult

pytestmark = pytest.mark.distributed


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def probed(same_loader: bool) -> ProbeResult:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(6, 2))
    x = torch.randn(400, 6)
    data = (x, (x[:, 0] > 0).long())
    batches = DataLoader(TensorDataset(*data), batch_size=16) if same_loader else data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = model.module.weight.detach().clone()
    found = probe_run(model, optimizer, loss, batches, base_batch_size=32, steps=32)
    assert torch.equal(model.module.weight, before)
    return found


def test_ranks_agree_on_what_they_find_and_share_the_batch() -> None:
    first, second = run_on_ranks(probed, 2, False)
    assert str(first.noise) == str(second.noise)
    assert first.noise.estimate is not None
    assert (first.ranks, first.micro_batches, first.name) == (2, 4, "Linear")
    assert all(check.sound for check in first.checks)


def test_ranks_that_read_the_same_samples_are_found_out() -> None:
    for found in run_on_ranks(probed, 2, True):
        (data,) = [check for check in found.checks if "micro-batches" in check.text]
        assert not data.sound
        assert "2 of the first step's 4" in data.text
        assert "DistributedSampler" in data.text
