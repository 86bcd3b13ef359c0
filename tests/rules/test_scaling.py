"""Fixed scaling laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.rules import LinearScaling, SqrtScaling
from largebatch.rules.scaling import linear_factor, sqrt_factor

scales = st.floats(1e-3, 1e6)


@given(a=scales, b=scales)
def test_scaling_twice_is_scaling_by_the_product(a: float, b: float) -> None:
    assert linear_factor(a) * linear_factor(b) == pytest.approx(linear_factor(a * b))
    assert sqrt_factor(a) * sqrt_factor(b) == pytest.approx(sqrt_factor(a * b))


@given(scale=scales)
def test_the_square_root_lies_between_one_and_linear(scale: float) -> None:
    low, high = sorted((1.0, linear_factor(scale)))
    assert low <= sqrt_factor(scale) <= high


def test_scale_one_changes_nothing() -> None:
    assert linear_factor(1) == sqrt_factor(1) == 1.0


@pytest.mark.parametrize(("rule", "factor"), [(LinearScaling(), 0.25), (SqrtScaling(), 0.5)])
def test_a_batch_below_the_base_lowers_the_rate(rule: LinearScaling, factor: float) -> None:
    seen = Measurement(step=0, samples=0, base_steps=0.0, batch_size=16, base_batch_size=64)
    _, decision = rule.update(None, seen, Decision(next_batch_size=512, base_steps=seen.scale))
    assert decision.lr_multiplier == factor
    assert decision.base_steps == 0.25
