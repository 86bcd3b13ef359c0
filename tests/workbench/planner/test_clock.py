"""Runs on the clock alone: where their batch may change, and how their steps are counted."""

from __future__ import annotations

import time

import pytest
from clock_rules import RULES

import largebatch as lb
from largebatch.core.measurement import Reading
from largebatch.core.rule import Rule, chain
from largebatch.rules.kinds import RULES as REGISTERED
from largebatch.workbench.amounts import MAX_SAMPLES
from largebatch.workbench.planner.clock import (
    boundaries,
    decides_by_the_clock,
    first_batch_of,
    growths_of,
    next_lr,
    on_the_clock,
    run_stages,
    skip_steps,
    start_decider,
)
from largebatch.workbench.planner.schedule_names import schedule_named
from largebatch.workbench.planner.table import clock_schedule, table_of

ARGUMENTS = {
    "Accordion": {"epochs": 1},
    "AnyTimeGrowth": {"coefficient": 1.0},
    "Legw": {"warmup_epochs": 1.0},
}


@pytest.mark.parametrize(
    "rule", [lb.AdaScale(), lb.methods.seesaw(), lb.methods.adaptive_growth(), lb.NormTest()]
)
def test_a_rule_that_measures_has_no_table(rule: Rule) -> None:
    with pytest.raises(ValueError, match="decides by measurements during the run"):
        table_of(rule, budget=6400, base_batch_size=16)


def test_the_rules_on_the_clock_are_those_that_measure_and_remember_nothing() -> None:
    examples = {
        name: cls(**ARGUMENTS.get(name, {}))
        for name, cls in REGISTERED.items()
        if name not in ("Every", "Averaged")
    }
    found = {name for name, rule in examples.items() if decides_by_the_clock(rule)}
    assert found == {
        "ClampBatch", "ClampLr", "Growth", "Legw", "LimitGrowth", "LinearScaling", "Milestones",
        "Schedule", "SqrtScaling", "WarmUp",
    }  # fmt: skip
    assert decides_by_the_clock(lb.Every(lb.LinearScaling()))
    assert not decides_by_the_clock(lb.Every(lb.AdaScale()))


def test_boundaries_are_in_samples_whatever_the_units() -> None:
    at = (0.25, 0.5)
    for over in (lb.Budget(samples=6400), lb.Budget(base_steps=400.0), lb.Budget(steps=400)):
        rule = lb.Growth(stages=lb.rules.Stages(batch=(1, 2, 4)), at=at, over=over)
        start = start_decider(rule, budget=6400, base_batch_size=16)
        assert list(boundaries(start, rule)) == [1600.0, 3200.0]
        assert list(boundaries(skip_steps(start, 10), rule)) == [1600.0, 3200.0]


def test_a_boundary_in_steps_is_where_the_batch_in_hand_would_reach_it() -> None:
    rule = lb.Growth(stages=lb.rules.Stages(batch=(1, 2)), at=(0.5,), over=lb.Budget(steps=40))
    start = start_decider(rule, budget=6400, base_batch_size=16, batch_size=32)
    assert list(boundaries(skip_steps(start, 15), rule)) == [20 * 32.0]


def test_only_absolute_batches_say_which_is_first() -> None:
    assert first_batch_of(chain(schedule_named("0:24 2K:48", base_batch_size=16))) == 24
    assert first_batch_of(chain(lb.Growth(), lb.SqrtScaling())) is None
    assert first_batch_of(chain()) is None


@pytest.mark.parametrize("name", RULES)
def test_rules_on_the_clock_stay_as_they_are(name: str) -> None:
    whole = on_the_clock(RULES[name])
    assert whole == chain(RULES[name])
    assert all(growth.at for growth in growths_of(whole))


@pytest.mark.parametrize("budget", [15, 0, -1, MAX_SAMPLES + 1, 1e6])
def test_a_table_refuses_a_budget_that_is_no_integer_in_range(budget: int) -> None:
    with pytest.raises(
        ValueError, match="must be a whole number of samples between the size of the first batch"
    ):
        table_of(lb.Growth(), budget=budget, base_batch_size=16)


@pytest.mark.parametrize("name", RULES)
def test_the_largest_budget_takes_no_steps(name: str) -> None:
    began = time.perf_counter()
    table = table_of(RULES[name], budget=MAX_SAMPLES, base_batch_size=256)
    assert table.steps > 10**6
    assert time.perf_counter() - began < 2.0  # 10^9 steps and more, each some 10 microseconds


def test_steps_ahead_are_steps_taken_where_nothing_changes() -> None:
    rule = lb.Growth(stages=lb.rules.Stages(batch=(1, 2)), at=(0.5,))
    start = start_decider(rule, budget=6400, base_batch_size=16, batch_size=32)
    whole = Reading(samples=32, loss=1.0)
    one, _ = start.decide(start.see(whole, base_lr=1.0))  # the first step sets the state
    taken = one
    for _ in range(40):
        taken, _ = taken.decide(taken.see(whole, base_lr=1.0))
    assert skip_steps(one, 40) == taken
    assert skip_steps(one, 0) == one


def test_a_rate_is_that_of_the_coming_step() -> None:
    start = start_decider(lb.methods.linear(), budget=6400, base_batch_size=16, batch_size=64)
    assert next_lr(start) == 4.0
    warm = start_decider(lb.methods.linear_warmup(fraction=0.5), budget=6400, base_batch_size=16)
    assert next_lr(warm) == next_lr(skip_steps(warm, 100)) == 1.0  # a scale of 1 has no warm-up


@pytest.mark.parametrize("name", RULES)
def test_stages_follow_each_other_without_a_gap_to_the_budget(name: str) -> None:
    here = start = start_decider(RULES[name], budget=17_777, base_batch_size=16)
    for stage in run_stages(start):
        assert stage.first == here
        assert stage.steps > 0
        here = stage.last
    assert here.finished


@pytest.mark.parametrize("name", RULES)
def test_a_stage_knows_its_rates(name: str) -> None:
    counted = clock_schedule(RULES[name], budget=17_777, base_batch_size=16)
    for stage, row in zip(counted.stages, counted.table.rows, strict=True):
        assert (stage.lr_after(0), stage.steps) == (row.lr, row.steps)
    for stage in counted.stages[:-1]:  # the last step of the last one may be cut
        assert stage.lr_after(stage.steps - 1) == stage.last_lr
