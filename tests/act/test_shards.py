"""Ranks with a loader each: one pass is the sum of what each of them gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

import largebatch as lb
from distributed import run_on_ranks
from largebatch.errors import RanksDisagree
from small_runs import data, sgd, small_model, train

pytestmark = pytest.mark.distributed

WHOLE = TensorDataset(*data(101))


class Unknown(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([WHOLE[0]] * 40)


def source_of(kind: str, rank: int) -> Any:
    shard = TensorDataset(*data((101, 99)[rank], seed=rank))
    if kind == "own shards":
        return DataLoader(shard, batch_size=10)
    if kind == "own shards, last dropped":
        return DataLoader(shard, batch_size=10, drop_last=True)
    if kind == "share, padded":
        return DataLoader(WHOLE, batch_size=10, sampler=DistributedSampler(WHOLE))
    if kind == "share, dropped":
        sampler = DistributedSampler(WHOLE, drop_last=True)
        return DataLoader(WHOLE, batch_size=10, sampler=sampler, drop_last=True)
    if kind == "whole data on each":
        return DataLoader(WHOLE, batch_size=10, sampler=RandomSampler(WHOLE))
    if kind == "own batches":
        return DataLoader(WHOLE, batch_sampler=[[0, 1, 2], [3, 4]] if rank else [[5, 6]])
    if kind == "one unknown":
        return DataLoader(Unknown() if rank else WHOLE, batch_size=10)
    if kind == "whole data":
        return WHOLE
    assert kind == "other data sets"
    return shard


EXPECTED = {
    "own shards": 200,
    "own shards, last dropped": 190,
    "share, padded": 102,
    "share, dropped": 100,
    "whole data on each": 202,
    "own batches": 7,
    "one unknown": None,
    "whole data": 101,
}


def control_of(source: Any, *, batch_size: int = 40, **options: Any) -> lb.Controller:
    model = DistributedDataParallel(small_model())
    batches = lb.BatchLoader(source, batch_size=batch_size, **options)
    return lb.Controller(model, sgd(model), lb.LinearScaling(), batches, base_batch_size=20)


def on_each_rank() -> dict[str, Any]:
    rank = dist.get_rank()
    found: dict[str, Any] = {
        kind: control_of(source_of(kind, rank)).decider.dataset_size for kind in EXPECTED
    }
    control = control_of(source_of("own shards", rank))
    train(control, epochs=1)
    found["trained"] = control.samples, [p.tolist() for p in control.model.parameters()]
    state: list[Any] = [control.state_dict() if rank == 0 else None]
    dist.broadcast_object_list(state)
    resumed = control_of(source_of("own shards", rank))
    resumed.load_state_dict(state[0])
    found["resumed"] = resumed.samples, resumed.decider.dataset_size
    try:
        other = control_of(source_of("other data sets", rank))
        other.steps(epochs=1)
    except RanksDisagree as error:
        found["other data sets"] = str(error)
    try:
        control_of(source_of("own shards", rank), dataset_size=100 + rank).steps(samples=100)
    except RanksDisagree as error:
        found["given unequally"] = str(error)
    return found


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, Any]]:
    return run_on_ranks(on_each_rank, 2)


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_pass_is_what_all_ranks_give(kind: str, by_rank: list[dict[str, Any]]) -> None:
    assert [found[kind] for found in by_rank] == [EXPECTED[kind]] * 2


def test_unequal_shards_train_an_epoch_that_is_both(by_rank: list[dict[str, Any]]) -> None:
    samples, weights = by_rank[0]["trained"]
    assert samples == 210  # 199 in five steps, and one more micro-batch on each rank
    assert by_rank[1]["trained"] == (samples, weights)


def test_unequal_shards_resume_from_the_first_ranks_state(by_rank: list[dict[str, Any]]) -> None:
    assert [found["resumed"] for found in by_rank] == [(210, 200)] * 2


@pytest.mark.parametrize("kind", ["other data sets", "given unequally"])
def test_ranks_that_disagree_are_told_so(kind: str, by_rank: list[dict[str, Any]]) -> None:
    for found in by_rank:
        assert "dataset_size (rank 0: 10" in found[kind]
