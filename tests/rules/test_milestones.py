"""Batches that grow at given points of the run."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decider import Decider
from largebatch.core.measurement import Budget, Reading
from largebatch.core.rule import chain
from largebatch.rules import ClampBatch, LinearScaling, Milestones, StepClock


def run(rule: Any, *, budget: Budget, lost: tuple[int, ...] = ()) -> list[Any]:
    """Each step's clock, batch and decision, until the budget is used up."""
    decider = Decider.start(rule, base_batch_size=8, batch_size=8, budget=budget)
    record: list[Any] = []
    while not decider.finished:
        reading = Reading(samples=decider.batch_size, finite=len(record) not in lost)
        seen = decider.see(reading, base_lr=0.1)
        decider, decision = decider.decide(seen)
        record.append((seen, decision))
    return record


def test_the_first_step_behind_a_milestone_has_the_larger_batch_and_its_rate() -> None:
    rule = chain(Milestones(at=(0.25, 0.5)), LinearScaling())
    for seen, decision in run(rule, budget=Budget(samples=256)):
        scale = 1 if seen.samples < 64 else 2 if seen.samples < 128 else 4
        assert (seen.batch_size, decision.lr_multiplier) == (8 * scale, scale)


@given(
    at=st.lists(st.floats(0.01, 0.99), unique=True, max_size=4).map(sorted).map(tuple),
    factor=st.sampled_from([0.5, 1.5, 2.0, 3.0]),
)
def test_every_milestone_counts_once_however_many_lie_in_one_step(
    at: tuple[float, ...], factor: float
) -> None:
    for budget in (Budget(samples=4096), Budget(steps=6), Budget(base_steps=100.0)):
        record = run(chain(Milestones(at=at, factor=factor), StepClock()), budget=budget)
        assert sum("milestone" in decision.reason for _, decision in record) <= len(at)
        expected = 8
        for _ in at:
            expected = max(math.ceil(factor * expected), 2)
        assert record[-1][1].next_batch_size == expected


@pytest.mark.parametrize("first", [10, 50, 100, 1000])
@pytest.mark.parametrize("tenths", [11, 12, 13, 17, 22])
def test_a_factor_of_tenths_gives_the_whole_number_that_it_means(first: int, tenths: int) -> None:
    """1.1 x 100 is 110.00000000000001 in floats."""
    rule, budget = Milestones(at=(0.5,), factor=tenths / 10), Budget(steps=4)
    decider = Decider.start(rule, base_batch_size=first, batch_size=first, budget=budget)
    for _ in range(2):
        decider, _ = decider.decide(decider.see(Reading(samples=first), base_lr=0.1))
    assert decider.batch_size == -(-tenths * first // 10)


def test_a_milestone_in_a_step_that_was_lost_is_made_up_for() -> None:
    sizes = [seen.batch_size for seen, _ in run(
        Milestones(at=(0.5,)), budget=Budget(samples=64), lost=(3, 4))]  # fmt: skip
    assert sizes == [8, 8, 8, 8, 8, 8, 16]


def test_milestones_over_their_own_horizon_name_its_unit() -> None:
    rule = Milestones(at=(0.25,), over=Budget(samples=400))
    assert rule.needs == frozenset()
    sizes = [seen.batch_size for seen, _ in run(rule, budget=Budget(steps=20))]
    assert sizes == [8] * 13 + [16] * 7  # 104 samples are the first beyond 100


def test_a_bound_on_the_batch_limits_the_growth_at_milestones() -> None:
    rule = chain(Milestones(at=(0.1, 0.2, 0.3)), ClampBatch(max=20))
    sizes = [seen.batch_size for seen, _ in run(rule, budget=Budget(steps=10))]
    assert max(sizes) == 20


@pytest.mark.parametrize(
    "more", [{"at": (0.0,)}, {"at": (1.0,)}, {"at": (0.5, 0.5)}, {"factor": 0.0},
             {"factor": math.inf}, {"at": (math.nan,)}],
)  # fmt: skip
def test_impossible_milestones_are_refused(more: Any) -> None:
    with pytest.raises(ValueError, match=r"Example: Milestones\(at=\(0.25, 0.5\), factor=2.0\)"):
        Milestones(**more)


def test_a_run_without_a_length_is_refused_in_its_first_step() -> None:
    decider = Decider.start(Milestones(), base_batch_size=8, batch_size=8)
    with pytest.raises(ValueError, match="the run has no budget"):
        decider.decide(decider.see(Reading(samples=8), base_lr=0.1))
