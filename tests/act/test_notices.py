"""What a rule tells the user comes as one warning, on the first rank alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.act.notices import Notices
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.record import MemoryRecord
from small_rules import Facts
from small_runs import data, loss_of, sgd, small_model

TEXT = "The ceiling was met. Raise it: Telling(at=9)."


@dataclass(frozen=True, kw_only=True)
class Telling(Facts):
    """Gives a notice in one step."""

    at: int = 2

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, proposed.noticed(TEXT if seen.step == self.at else "")


def told_by_controller(rule: Any) -> tuple[list[list[str]], list[str]]:
    """Return what was warned of in each step, and the notices of the record."""
    model: Any = small_model()
    optimizer, record = sgd(model), MemoryRecord()
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    batches = lb.BatchLoader(data(48), batch_size=8, max_micro_batch_size=4, seed=0)
    control = lb.Controller(model, optimizer, rule, batches, base_batch_size=8, record=record)
    told = []
    for batch in control.steps(steps=5):
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            control.step()
        assert all(one.category is RuntimeWarning for one in caught)
        told.append([str(one.message) for one in caught])
    return told, [step.decision.notice for step in record.steps]


def told_by_attach(rule: Any) -> tuple[list[list[str]], list[str]]:
    model: Any = small_model()
    optimizer, record = sgd(model), MemoryRecord()
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    x, y = data(48)
    told = []
    with lb.attach(model, optimizer, rule, batch_size=8, base_batch_size=8, record=record):
        for step in range(5):
            for rows in (slice(8 * step, 8 * step + 4), slice(8 * step + 4, 8 * step + 8)):
                (loss_of(model, x[rows], y[rows]) / 2).backward()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step()
            told.append([str(one.message) for one in caught])
            optimizer.zero_grad()
    return told, [step.decision.notice for step in record.steps]


DOORS = {"controller": told_by_controller, "attach": told_by_attach}


@pytest.mark.parametrize("door", DOORS)
def test_a_notice_is_one_warning_and_in_the_record(door: str) -> None:
    told, notices = DOORS[door](lb.chain(Telling(), lb.SqrtScaling(), lb.ClampLr(max=0.5)))
    assert told == [[], [], [TEXT], [], []]
    assert notices == ["", "", TEXT, "", ""]


@pytest.mark.parametrize("door", DOORS)
def test_the_notices_of_two_rules_are_one_warning(door: str) -> None:
    told, _ = DOORS[door](lb.chain(Telling(), Telling(at=3), Telling(at=3)))
    assert told == [[], [], [TEXT], [f"{TEXT} {TEXT}"], []]


def on_a_rank() -> None:
    rank = dist.get_rank()
    torch.set_num_threads(1)
    for tell in DOORS.values():
        told, notices = tell(Telling())
        assert told == [[], [], [TEXT] if rank == 0 else [], [], []]
        assert notices == (["", "", TEXT, "", ""] if rank == 0 else [])


@pytest.mark.distributed
def test_the_first_rank_alone_warns() -> None:
    run_on_ranks(on_a_rank, 2)


def test_a_resumed_run_warns_on_the_first_rank_alone() -> None:
    decider = Decider.start(lb.chain(), base_batch_size=8, batch_size=8)
    with pytest.warns(RuntimeWarning, match="^averages begin anew$") as told:
        Notices(decider, leader=True).resume(decider, notice="averages begin anew")
    assert len(told) == 1
    Notices(decider, leader=False).resume(decider, notice="averages begin anew")
    Notices(decider, leader=True).resume(decider)
