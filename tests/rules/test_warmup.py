"""Gradual warm-up from the base rate to the scaled rate."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Measurement
from largebatch.core.rule import chain
from largebatch.rules import LinearScaling, WarmUp
from largebatch.rules.warmup import warmup_factor

BUDGET = Budget(samples=1000)


def rate(rule: WarmUp, *, samples: int = 0, batch_size: int = 256, step: int = 0) -> float:
    seen = Measurement(
        step=step,
        samples=samples,
        base_steps=0.0,
        batch_size=batch_size,
        base_batch_size=64,
        budget=BUDGET,
    )
    return rule.update(None, seen, Decision(next_batch_size=9, base_steps=4.0))[1].lr_multiplier


@given(a=st.floats(0, 1), b=st.floats(0, 1), fraction=st.floats(0.01, 1), start=st.floats(0, 1))
def test_the_factor_rises_from_the_start_to_one(
    a: float, b: float, fraction: float, start: float
) -> None:
    early, late = (
        warmup_factor(progress=p, fraction=fraction, start=start) for p in sorted((a, b))
    )
    assert start <= early <= late * (1 + 1e-12) <= 1.0 + 2e-12


def test_the_factor_has_its_hand_computed_values() -> None:
    rule = WarmUp(fraction=0.1, start=0.2)
    assert [rate(rule, samples=n) for n in (0, 25, 50, 99, 100, 900)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.992, 1.0, 1.0]
    )


def test_the_rate_begins_at_the_base_rate_of_a_linearly_scaled_run() -> None:
    whole = chain(LinearScaling(), WarmUp(fraction=0.1))
    seen = Measurement(
        step=0, samples=0, base_steps=0.0, batch_size=2048, base_batch_size=64, budget=BUDGET
    )
    _, decision = whole.update(whole.init(), seen, Decision(next_batch_size=2048, base_steps=32.0))
    assert decision.lr_multiplier == 1.0


@given(batch_size=st.integers(1, 64), samples=st.integers(0, 1000))
def test_a_batch_up_to_the_base_has_no_warm_up(batch_size: int, samples: int) -> None:
    assert rate(WarmUp(), samples=samples, batch_size=batch_size) == 1.0


def test_the_default_start_follows_the_batch_in_hand() -> None:
    rule = WarmUp(fraction=1.0)
    assert rate(rule, batch_size=128) == 0.5
    assert rate(rule, batch_size=256) == 0.25
    assert rate(rule, batch_size=256, samples=500) == 0.625


def test_an_own_horizon_names_its_unit() -> None:
    rule = WarmUp(fraction=1.0, start=0.0, over=Budget(steps=10))
    assert rule.needs == frozenset()
    assert [rate(rule, step=n, samples=999) for n in (0, 5, 10, 20)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, math.nan])
def test_an_impossible_part_of_the_budget_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"WarmUp\(fraction=0\.055"):
        WarmUp(fraction=fraction)


@pytest.mark.parametrize("start", [-0.1, 1.5, math.nan])
def test_an_impossible_start_is_refused(start: float) -> None:
    with pytest.raises(ValueError, match=r"start=0\.1"):
        WarmUp(start=start)
