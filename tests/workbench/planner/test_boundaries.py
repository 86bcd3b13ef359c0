from __future__ import annotations

import pytest
from clock_rules import RULES

import largebatch as lb
from largebatch.core.rule import Rule, chain
from largebatch.rules import RULES as REGISTERED
from largebatch.workbench.planner.boundaries import (
    boundaries,
    decides_by_the_clock,
    first_of,
    growths_of,
    on_the_clock,
)
from largebatch.workbench.planner.clock_run import ahead, started
from largebatch.workbench.planner.named import schedule_named
from largebatch.workbench.planner.table import table_of

ARGUMENTS = {
    "Accordion": {"epochs": 1},
    "AnyTimeGrowth": {"coefficient": 1.0},
    "Legw": {"warmup_epochs": 1.0},
}


@pytest.mark.parametrize(
    "rule", [lb.AdaScale(), lb.methods.seesaw(), lb.methods.adaptive_growth(), lb.NormTest()]
)
def test_a_rule_that_measures_has_no_table(rule: Rule) -> None:
    with pytest.raises(ValueError, match="decides by what a run measures"):
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
        rule = lb.Growth(stages=lb.Stages(batch=(1, 2, 4)), at=at, over=over)
        start = started(rule, budget=6400, base_batch_size=16)
        assert list(boundaries(start, rule)) == [1600.0, 3200.0]
        assert list(boundaries(ahead(start, 10), rule)) == [1600.0, 3200.0]


def test_a_boundary_in_steps_is_where_the_batch_in_hand_would_reach_it() -> None:
    rule = lb.Growth(stages=lb.Stages(batch=(1, 2)), at=(0.5,), over=lb.Budget(steps=40))
    start = started(rule, budget=6400, base_batch_size=16, batch_size=32)
    assert list(boundaries(ahead(start, 15), rule)) == [20 * 32.0]


def test_only_absolute_batches_say_which_is_first() -> None:
    assert first_of(chain(schedule_named("0:24 2K:48", base_batch_size=16))) == 24
    assert first_of(chain(lb.Growth(), lb.SqrtScaling())) is None
    assert first_of(chain()) is None


@pytest.mark.parametrize("name", RULES)
def test_rules_on_the_clock_stay_as_they_are(name: str) -> None:
    whole = on_the_clock(RULES[name])
    assert whole == chain(RULES[name])
    assert all(growth.at for growth in growths_of(whole))
