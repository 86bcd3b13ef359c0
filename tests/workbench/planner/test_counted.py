from __future__ import annotations

import time

import pytest
from clock_rules import RULES

import largebatch as lb
from largebatch.core.measurement import Reading
from largebatch.workbench.planner.clock_run import MOST_BUDGET, ahead, rate_at, runs, started
from largebatch.workbench.planner.table import table_of


@pytest.mark.parametrize("budget", [15, 0, -1, MOST_BUDGET + 1, 1e6])
def test_a_budget_that_is_none_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="a whole number of samples, from its first batch"):
        table_of(lb.Growth(), budget=budget, base_batch_size=16)


@pytest.mark.parametrize("name", RULES)
def test_the_largest_budget_takes_no_steps(name: str) -> None:
    began = time.perf_counter()
    table = table_of(RULES[name], budget=MOST_BUDGET, base_batch_size=256)
    assert table.steps > 10**6
    assert time.perf_counter() - began < 2.0  # 10^9 steps and more, each some 10 microseconds


def test_steps_ahead_are_steps_taken_where_nothing_changes() -> None:
    rule = lb.Growth(stages=lb.Stages(batch=(1, 2)), at=(0.5,))
    start = started(rule, budget=6400, base_batch_size=16, batch_size=32)
    whole = Reading(samples=32, loss=1.0)
    one, _ = start.decide(start.see(whole, base_lr=1.0))  # the first step sets the state
    taken = one
    for _ in range(40):
        taken, _ = taken.decide(taken.see(whole, base_lr=1.0))
    assert ahead(one, 40) == taken
    assert ahead(one, 0) == one


def test_a_rate_is_that_of_the_coming_step() -> None:
    start = started(lb.methods.linear(), budget=6400, base_batch_size=16, batch_size=64)
    assert rate_at(start) == 4.0
    warm = started(lb.methods.linear_warmup(fraction=0.5), budget=6400, base_batch_size=16)
    assert rate_at(warm) == rate_at(ahead(warm, 100)) == 1.0  # a scale of 1 has no warm-up


@pytest.mark.parametrize("name", RULES)
def test_stages_follow_each_other_without_a_gap_to_the_budget(name: str) -> None:
    here = start = started(RULES[name], budget=17_777, base_batch_size=16)
    for first, last, _, _ in runs(start):
        assert first == here
        assert last.step > first.step
        here = last
    assert here.finished
