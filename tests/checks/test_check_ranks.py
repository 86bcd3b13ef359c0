"""On several ranks all get the same findings, whoever saw them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from runs_with_faults import SAMPLES, Doubled, alarms, the
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import largebatch as lb
from distributed import run_on_ranks
from largebatch.checks.finding import CheckUp
from small_runs import class_data, classifier, mean_loss

pytestmark = pytest.mark.distributed

FAULTS = (
    "none",
    "shares",
    "own shards",
    "own batches",
    "drawn anew",
    "other data",
    "same samples",
    "whole data",
    "seeds",
    "replicas",
    "unused",
    "outside",
    "raises on one",
)


def run_of(source: Any, model: nn.Module | None = None, extra: Any = ()) -> lb.Controller:
    torch.manual_seed(0)
    replica = DistributedDataParallel(model if model is not None else classifier())
    optimizer = torch.optim.SGD([*replica.parameters(), *extra], lr=0.05)
    loader = lb.BatchLoader(source, batch_size=32)
    return lb.Controller(replica, optimizer, lb.AdaScale(), loader, base_batch_size=16)


class Augmented(Dataset[Any]):
    """The same samples on each rank, with noise from a generator of its own."""

    def __init__(self, rank: int) -> None:
        self.x, self.y = class_data(SAMPLES)
        self.own = torch.Generator().manual_seed(rank)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + torch.randn(5, generator=self.own), self.y[index]


def the_same(fault: str) -> CheckUp:
    rank = dist.get_rank()
    whole = TensorDataset(*class_data(SAMPLES))
    loss: Any = mean_loss
    model: nn.Module | None = None
    extra: Any = ()
    source: Any = class_data(SAMPLES)
    if fault == "other data":
        source = class_data(SAMPLES, seed=rank)
    elif fault == "same samples":
        source = DataLoader(whole, batch_size=16)
    elif fault == "whole data":
        own = torch.Generator().manual_seed(rank)
        source = DataLoader(whole, batch_size=16, shuffle=True, generator=own)
    elif fault == "shares":
        source = DataLoader(whole, batch_size=16, sampler=DistributedSampler(whole))
    elif fault == "own shards":
        own = torch.Generator().manual_seed(rank)
        shard = TensorDataset(*class_data(SAMPLES, seed=rank))
        source = DataLoader(shard, batch_size=16, shuffle=True, generator=own)
    elif fault == "own batches":
        starts = range(16 * rank, SAMPLES, 32)
        batches = [list(range(at, at + 16)) for at in starts]
        source = DataLoader(whole, batch_sampler=batches)
    elif fault == "drawn anew":
        source = Augmented(rank)
    elif fault == "seeds":
        sampler = DistributedSampler(whole, seed=rank)
        source = DataLoader(whole, batch_size=16, sampler=sampler)
    elif fault == "replicas":
        sampler = DistributedSampler(whole, num_replicas=4, rank=rank)
        source = DataLoader(whole, batch_size=16, sampler=sampler)
    elif fault == "unused":
        model = Doubled()
    elif fault == "outside":
        torch.manual_seed(0)
        head = nn.Linear(3, 3)
        extra = head.parameters()

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(head(model(batch[0])), batch[1])
    elif fault == "raises on one":

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            if rank == 1:
                raise RuntimeError("here alone")
            return mean_loss(model, batch)

    return lb.check(run_of(source, model, extra), loss, seconds=0.0)


def every() -> dict[str, CheckUp]:
    return {fault: the_same(fault) for fault in FAULTS}


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, CheckUp]]:
    """What each of two ranks was told of each fault."""
    return run_on_ranks(every, 2)


@pytest.mark.parametrize("fault", ["none", "shares", "own shards", "own batches", "drawn anew"])
def test_sound_runs_have_no_alarm(fault: str, by_rank: list[dict[str, CheckUp]]) -> None:
    found = by_rank[0][fault]
    assert alarms(found) == []
    assert "2 ranks" in the(found, "samples").seen


@pytest.mark.parametrize(
    ("fault", "name", "level", "seen"),
    [
        ("other data", "samples", "error", "ranks read different data"),
        ("same samples", "samples", "error", "1 of the first 2 micro-batches of 2 ranks"),
        ("whole data", "samples", "warning", "Each of 2 ranks reads all 96 samples"),
        ("seeds", "samples", "error", "different seeds on the ranks: 0, 1"),
        ("replicas", "samples", "error", "num_replicas=4"),
        ("unused", "unused parameters", "error", "2 of 4"),
        ("outside", "parameters outside the model", "error", "moves 2 parameters"),
        ("raises on one", "loss", "error", "Rank 1: loss(model, micro_batch) raised"),
    ],
)
def test_a_fault_is_found(
    fault: str, name: str, level: str, seen: str, by_rank: list[dict[str, CheckUp]]
) -> None:
    found = by_rank[0][fault]
    assert the(found, name).level == level
    assert seen in the(found, name).seen
    assert alarms(found) == [name]


@pytest.mark.parametrize("fault", FAULTS)
def test_all_ranks_report_the_same_findings(fault: str, by_rank: list[dict[str, CheckUp]]) -> None:
    assert by_rank[0][fault] == by_rank[1][fault]


def kept() -> tuple[bool, bool, CheckUp]:
    control = run_of(class_data(SAMPLES), classifier())
    model = control.model
    before = [p.detach().clone() for p in model.parameters()]
    synchronises = model.require_forward_param_sync

    def by_the_wrapper(inside: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return mean_loss(model, batch)

    lb.check(control, by_the_wrapper, seconds=0.0)
    found = lb.check(control, mean_loss, seconds=0.2)
    same = True
    for batch in control.steps(steps=2):
        if not control.optimizer_steps:
            same = all(map(torch.equal, before, (p.detach() for p in model.parameters())))
        for micro_batch in batch:
            control.backward(mean_loss(model, micro_batch))
        control.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    everyone = [torch.empty_like(after) for _ in range(2)]
    dist.all_gather(everyone, after)
    return same and synchronises, torch.equal(*everyone), found


def test_training_on_two_ranks_is_unchanged_by_a_timed_check() -> None:
    for same, equal, found in run_on_ranks(kept, 2):
        assert same
        assert equal
        assert "timed twice" in the(found, "cost of measuring").seen
