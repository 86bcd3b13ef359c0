"""Factors of the budget, and the rule that applies them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Measurement
from largebatch.rules import (
    WSD,
    Constant,
    Cosine,
    Exponential,
    Linear,
    Polynomial,
    Schedule,
    StepDecay,
)
from largebatch.rules.factors import Factor

FACTORS = [
    Constant(),
    StepDecay(),
    Exponential(end=0.01),
    Linear(),
    Cosine(end=0.1),
    Polynomial(power=0.5),
    WSD(),
]
FRACTIONS = st.floats(0.0, 1.0)


def see(*, step: int = 0, samples: int = 0, base_steps: float = 0.0, **more: Any) -> Measurement:
    return Measurement(
        step=step,
        samples=samples,
        base_steps=base_steps,
        batch_size=256,
        base_batch_size=64,
        **more,
    )


def rate(rule: Schedule, seen: Measurement) -> float:
    return rule.update(None, seen, Decision(next_batch_size=256, base_steps=4.0))[1].lr_multiplier


@pytest.mark.parametrize("factor", FACTORS, ids=lambda f: type(f).__name__)
def test_a_factor_starts_at_one(factor: Factor) -> None:
    assert factor(0.0) == 1.0


@pytest.mark.parametrize("factor", FACTORS, ids=lambda f: type(f).__name__)
@given(a=FRACTIONS, b=FRACTIONS)
def test_a_factor_never_rises_and_stays_in_range(factor: Factor, a: float, b: float) -> None:
    early, late = sorted((a, b))
    assert 0.0 <= factor(late) <= factor(early) * (1 + 1e-12) <= 1.0 + 1e-12


@pytest.mark.parametrize(
    ("factor", "end"),
    [
        (Constant(), 1.0),
        (StepDecay(at=(0.5,), factor=0.2), 0.2),
        (Exponential(end=0.05), 0.05),
        (Linear(end=0.05), 0.05),
        (Cosine(), 0.0),
        (Polynomial(power=3.0, end=0.25), 0.25),
        (WSD(end=0.5), 0.5),
    ],
)
def test_a_factor_ends_where_it_says(factor: Factor, end: float) -> None:
    assert factor(1.0) == pytest.approx(end, abs=1e-15)


@pytest.mark.parametrize(
    ("factor", "fraction", "value"),
    [
        (StepDecay(at=(0.25, 0.5), factor=0.5), 0.25, 0.5),
        (StepDecay(at=(0.25, 0.5), factor=0.5), 0.2499, 1.0),
        (StepDecay(at=(0.25, 0.5), factor=0.5), 0.75, 0.25),
        (StepDecay(at=()), 1.0, 1.0),
        (Exponential(end=0.0001), 0.25, 0.1),
        (Linear(end=0.5), 0.5, 0.75),
        (Cosine(), 1 / 3, 0.75),
        (Cosine(end=0.2), 0.5, 0.6),
        (Polynomial(power=2.0), 0.75, 0.0625),
        (WSD(decay=0.5), 0.75, 0.5),
        (WSD(decay=0.5), 0.5, 1.0),
        (WSD(decay=1.0, end=0.2), 0.5, 0.6),
    ],
)
def test_a_factor_has_its_hand_computed_value(
    factor: Factor, fraction: float, value: float
) -> None:
    assert factor(fraction) == pytest.approx(value, rel=1e-12)


@given(fraction=FRACTIONS, end=FRACTIONS)
def test_linear_is_the_first_power_and_the_whole_decay(fraction: float, end: float) -> None:
    linear = Linear(end=end)(fraction)
    assert Polynomial(power=1.0, end=end)(fraction) == pytest.approx(linear, rel=1e-12)
    assert WSD(decay=1.0, end=end)(fraction) == pytest.approx(linear, rel=1e-12)


@given(a=FRACTIONS, b=FRACTIONS)
def test_an_exponential_falls_by_the_same_ratio_over_equal_parts(a: float, b: float) -> None:
    factor = Exponential(end=0.03)
    assert factor(a / 2) * factor(b / 2) == pytest.approx(factor((a + b) / 2), rel=1e-12)


@given(fraction=FRACTIONS)
def test_a_cosine_is_symmetric_about_its_middle(fraction: float) -> None:
    factor = Cosine(end=0.2)
    assert factor(fraction) + factor(1.0 - fraction) == pytest.approx(1.2, rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StepDecay(at=(0.5, 0.5)),
        lambda: StepDecay(at=(0.5, 1.5)),
        lambda: StepDecay(factor=0.0),
        lambda: StepDecay(at=(math.nan,)),
        lambda: Exponential(end=0.0),
        lambda: Linear(end=-0.1),
        lambda: Cosine(end=math.nan),
        lambda: Polynomial(power=0.0),
        lambda: Polynomial(end=-1.0),
        lambda: WSD(decay=0.0),
        lambda: WSD(decay=1.1),
    ],
)
def test_an_impossible_factor_is_refused_with_an_example(make: Any) -> None:
    with pytest.raises(ValueError, match=r"\w+.* was given, but .*Example: \w+\(.*="):
        make()


@given(used=st.integers(0, 1000))
def test_the_clock_is_that_of_the_budget(used: int) -> None:
    expected = 1.0 - used / 1000
    rule = Schedule(factor=Linear())
    others = {"step": 7, "samples": 7, "base_steps": 7.0}
    for unit, value in {"step": used, "samples": used, "base_steps": float(used)}.items():
        amount = {"steps" if unit == "step" else unit: 1000}
        seen = see(**{**others, unit: value}, budget=Budget(**amount))
        assert rate(rule, seen) == pytest.approx(expected, abs=1e-12)


def test_an_own_horizon_goes_before_the_budget_and_holds_its_last_factor() -> None:
    rule = Schedule(factor=Linear(end=0.1), over=Budget(steps=10))
    budget = Budget(samples=1_000_000)
    assert rate(rule, see(step=5, budget=budget)) == pytest.approx(0.55)
    assert rate(rule, see(step=5)) == pytest.approx(0.55)
    assert rate(rule, see(step=99, budget=budget)) == pytest.approx(0.1)


def test_a_budget_is_needed_only_without_an_own_horizon() -> None:
    assert Schedule().needs == {"budget"}
    assert Schedule(over=Budget(steps=10)).needs == frozenset()
    with pytest.raises(ValueError, match=r"control\.steps\(samples="):
        rate(Schedule(), see())


def test_the_factor_multiplies_what_was_proposed_and_says_so() -> None:
    rule = Schedule(factor=Linear())
    proposed = Decision(next_batch_size=256, base_steps=4.0, lr_multiplier=3.0, reason="gain 3")
    seen = see(samples=500, budget=Budget(samples=1000))
    _, decision = rule.update(None, seen, proposed)
    assert decision.lr_multiplier == 1.5
    assert decision.reason == "gain 3; schedule: lr x0.5"
    _, whole = rule.update(None, see(budget=Budget(samples=1000)), proposed)
    assert whole == proposed


@given(clock=st.floats(0.0, 18.0))
def test_a_step_decay_at_whole_base_steps_is_the_same_on_the_rounded_clock(clock: float) -> None:
    rule, budget = Schedule(factor=StepDecay(at=(6 / 18, 12 / 18))), Budget(base_steps=18.0)
    rounded = see(base_steps=float(math.floor(clock)), budget=budget)
    assert rate(rule, see(base_steps=clock, budget=budget)) == rate(rule, rounded)


def test_a_factor_that_no_record_could_name_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"Schedule\(factor=Cosine\(\)\)"):
        Schedule(factor=lambda fraction: 1.0)
    with pytest.raises(ValueError, match="an instance of a dataclass"):
        Schedule(factor=Cosine)
