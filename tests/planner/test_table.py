from __future__ import annotations

import time

import pytest

import largebatch as lb
from largebatch.core.decider import Decider
from largebatch.core.measurement import Budget, Reading
from largebatch.core.rule import Rule
from largebatch.planner.named import NAMES, schedule_named
from largebatch.planner.table import MOST_BUDGET, table_of

STEPPED = lb.Budget(steps=40)
RULES: dict[str, Rule] = {
    **{name: schedule_named(name, base_batch_size=16, noise_scale=300) for name in NAMES},
    "steps": schedule_named("0:24 2K:48 5.5K:96", base_batch_size=16),
    "rate goes on": lb.methods.growth(gamma=1.5, most=4, rate_goes_on=True, stages=6),
    "rate capped": lb.methods.growth(gamma=1.4, lengths=(1,) * 6, max_lr=2.0),
    "in steps": lb.Growth(stages=lb.Stages(batch=(1, 3, 5)), at=(0.25, 1.0), over=STEPPED),
    "in base steps": lb.Growth(
        stages=lb.Stages(batch=(1, 2)), at=(0.37,), over=lb.Budget(base_steps=300.0)
    ),
    "shrinks": lb.Growth(stages=lb.Stages(batch=(4, 1, 2)), at=(0.3, 0.6)),
    "limited": lb.chain(lb.Growth(stages=lb.Stages(batch=(1, 64)), at=(0.2,)), lb.LimitGrowth()),
    "milestones": lb.Milestones(factor=3.0),
    "clamped": lb.chain(lb.Growth(), lb.ClampBatch(max=48), lb.SqrtScaling()),
    "warm-up": lb.methods.linear_warmup(fraction=0.3),
}


def by_steps(rule: Rule, *, budget: int, first: int | None = None) -> list[tuple[int, int, float]]:
    """(samples before, batch, rate) of each step, taken one by one."""
    start = table_of(rule, budget=budget, base_batch_size=16, batch_size=first).rows[0].batch_size
    decider = Decider.start(
        rule, base_batch_size=16, batch_size=start, budget=Budget(samples=budget)
    )
    taken = []
    while not decider.finished:
        size = min(decider.batch_size, budget - decider.samples)
        before = decider
        decider, decision = decider.decide(decider.see(Reading(samples=size), base_lr=1.0))
        taken.append((before.samples, before.batch_size, decision.lr_multiplier))
    return taken


@pytest.mark.parametrize("budget", [6400, 17_777])
@pytest.mark.parametrize("name", RULES)
def test_a_table_is_what_the_steps_would_do(name: str, budget: int) -> None:
    taken = by_steps(RULES[name], budget=budget)
    table = table_of(RULES[name], budget=budget, base_batch_size=16)
    assert table.steps == len(taken)
    at = 0
    for row in table.rows:
        steps = taken[at : at + row.steps]
        assert {size for _, size, _ in steps} == {row.batch_size}
        assert (steps[0][0], steps[0][2]) == (row.samples, row.lr)
        if at + row.steps < len(taken):
            assert steps[-1][2] == row.last_lr  # the very last step may be cut, its rate with it
        at += row.steps
        assert row.cumulative_steps == at


def test_stages_of_one_batch_and_another_rate_are_rows_of_their_own() -> None:
    rows = table_of(RULES["rate goes on"], budget=64_000, base_batch_size=16).rows
    assert [row.batch_size for row in rows] == [16, 32, 64, 64, 64, 64]
    assert [row.lr for row in rows] == [1.5**m for m in range(6)]


def test_a_scale_is_that_of_the_first_batch() -> None:
    table = table_of(lb.methods.linear(), budget=6400, base_batch_size=16, batch_size=64)
    assert (table.rows[0].lr, table.steps, table.saved) == (4.0, 100, 0.75)
    assert table.mean_batch_size == 64.0


@pytest.mark.parametrize("name", RULES)
def test_the_largest_budget_takes_no_steps(name: str) -> None:
    began = time.perf_counter()
    table = table_of(RULES[name], budget=MOST_BUDGET, base_batch_size=256)
    assert table.steps > 10**6
    assert time.perf_counter() - began < 2.0  # 10^9 steps and more, each some 10 microseconds


@pytest.mark.parametrize(
    "rule", [lb.AdaScale(), lb.methods.seesaw(), lb.methods.adaptive_growth(), lb.NormTest()]
)
def test_a_rule_that_measures_has_no_table(rule: Rule) -> None:
    with pytest.raises(ValueError, match="decides by what a run measures"):
        table_of(rule, budget=6400, base_batch_size=16)


@pytest.mark.parametrize("budget", [15, 0, -1, MOST_BUDGET + 1, 1e6])
def test_a_budget_that_is_none_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="a whole number of samples, from its first batch"):
        table_of(lb.Growth(), budget=budget, base_batch_size=16)


def test_a_point_behind_the_end_is_refused_as_in_a_run() -> None:
    rule = schedule_named("0:16 1K:32", base_batch_size=16)
    with pytest.raises(ValueError, match="never reached"):
        table_of(rule, budget=900, base_batch_size=16)


def test_stages_that_are_too_short_for_a_step_are_counted() -> None:
    table = table_of(lb.methods.growth(stages=8), budget=100, base_batch_size=16)
    assert len(table.rows) + table.passed_over == 8
    assert table.passed_over > 0


def test_unknown_names_are_answered_with_the_closest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'growth'"):
        schedule_named("grwth", base_batch_size=16)
    with pytest.raises(ValueError, match="thresholds rise"):
        schedule_named("0:16 2K:32 1K:64", base_batch_size=16)
    with pytest.raises(ValueError, match="above 0"):
        schedule_named("seesaw", base_batch_size=16, noise_scale=-3.0)
