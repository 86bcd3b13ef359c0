"""CABS against the plain recursion."""

from __future__ import annotations

import math

import pytest
from batch_rules import asked, moments_of, see
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.rule import chain
from largebatch.rules import CABS, ClampBatch, LinearScaling
from largebatch.rules.cabs import cabs_batch

NUMBERS = st.tuples(st.floats(0, 1e5), st.floats(1e-3, 10.0))


@given(series=st.lists(NUMBERS, min_size=1, max_size=20), lr=st.floats(1e-4, 1.0))
def test_cabs_averages_loss_and_variance_as_the_authors_do(
    series: list[tuple[float, float]], lr: float
) -> None:
    rule, variance, loss = CABS(), 0.0, 1.0
    state = rule.init()
    for v, f in series:
        variance, loss = 0.95 * variance + 0.05 * v, 0.95 * loss + 0.05 * f
        seen = see(moments_of(v, 1.0), loss=f, base_lr=lr)
        proposed = Decision(next_batch_size=64, base_steps=1.0)
        state, decision = rule.update(state, seen, proposed)
        assert state.values == pytest.approx((variance, loss), rel=1e-9)
        expected = max(lr * variance / loss, 2.0)
        assert decision.next_batch_size == pytest.approx(expected, abs=0.51, rel=1e-9)


def test_the_rate_is_that_of_the_step() -> None:
    seen = see(moments_of(1e5, 1.0), batch_size=256, loss=1.0, base_lr=0.01)
    plain, scaled = asked(CABS(), seen), asked(chain(LinearScaling(), CABS()), seen)
    assert (plain.next_batch_size, scaled.next_batch_size) == (50, 200)
    bounded = asked(chain(CABS(), ClampBatch(min=16, max=32)), seen)
    assert bounded.next_batch_size == 32


def test_a_step_without_loss_or_moments_changes_nothing() -> None:
    rule = CABS()
    for seen in (see(loss=1.0), see(moments_of(1.0, 1.0))):
        state, decision = rule.update(
            rule.init(), seen, Decision(next_batch_size=77, base_steps=1.0)
        )
        assert state == rule.init()
        assert (decision.next_batch_size, decision.measure_next) == (77, {"moments"})


@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan, math.inf])
def test_a_loss_that_is_no_distance_has_no_batch(loss: float) -> None:
    assert cabs_batch(lr=0.1, variance=1.0, loss=loss) is None


def test_numbers_beyond_the_largest_float_have_no_bound() -> None:
    assert cabs_batch(lr=1e10, variance=1e300, loss=1.0) == math.inf
    assert cabs_batch(lr=0.1, variance=-1.0, loss=1.0) == 0.0
