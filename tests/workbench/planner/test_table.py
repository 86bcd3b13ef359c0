from __future__ import annotations

import pytest
from clock_rules import RULES

import largebatch as lb
from largebatch.core.decider import Decider
from largebatch.core.measurement import Budget, Reading
from largebatch.core.rule import Rule
from largebatch.workbench.planner.schedule_names import schedule_named
from largebatch.workbench.planner.table import table_of


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


def test_a_point_behind_the_end_is_refused_as_in_a_run() -> None:
    rule = schedule_named("0:16 1K:32", base_batch_size=16)
    with pytest.raises(ValueError, match="but the run ends"):
        table_of(rule, budget=900, base_batch_size=16)


def test_stages_that_are_too_short_for_a_step_are_counted() -> None:
    table = table_of(lb.methods.growth(stages=8), budget=100, base_batch_size=16)
    assert len(table.rows) + table.passed_over == 8
    assert table.passed_over > 0


def test_unknown_names_are_answered_with_the_closest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'growth'"):
        schedule_named("grwth", base_batch_size=16)
    with pytest.raises(ValueError, match="thresholds must rise"):
        schedule_named("0:16 2K:32 1K:64", base_batch_size=16)
    with pytest.raises(ValueError, match="above 0"):
        schedule_named("seesaw", base_batch_size=16, noise_scale=-3.0)
