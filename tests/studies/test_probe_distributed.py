"""The probe on two ranks, with samples of their own and with the same ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from distributed import run_on_ranks
from largebatch.studies.probe import probe
from largebatch.studies.probe_result import ProbeResult

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
    found = probe(model, optimizer, loss, batches, base_batch_size=32, steps=32)
    assert torch.equal(model.module.weight, before)
    return found


def test_ranks_agree_on_what_they_find_and_share_the_batch() -> None:
    first, second = run_on_ranks(probed, 2, False)
    assert str(first.noise) == str(second.noise)
    assert first.noise.estimate is not None
    assert (first.ranks, first.micro_batches, first.name) == (2, 4, "Linear")
    assert all(finding.level == "ok" for finding in first.checks)


def test_ranks_that_read_the_same_samples_are_found_out() -> None:
    for found in run_on_ranks(probed, 2, True):
        (data,) = [finding for finding in found.checks if finding.name == "samples"]
        assert data.level == "error"
        assert "2 of the first 4" in data.seen
        assert "DistributedSampler" in data.remedy
