"""CABS against the plain recursion."""

from __future__ import annotations

import math

import pytest
from batch_rules import moments_of, see, told
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
        assert state.average.values == pytest.approx((variance, loss), rel=1e-9)
        assert decision.next_batch_size == 64 or "[" in decision.reason
    assert state.average.weight == pytest.approx(1.0), "nothing corrects the authors' bias"


@given(
    numbers=st.tuples(st.floats(1.0, 1e5), st.floats(1e-2, 10.0)),
    lr=st.floats(1e-3, 1.0),
    count=st.integers(4, 120),
)
def test_of_equal_steps_the_batch_is_that_of_the_interval_without_width(
    numbers: tuple[float, float], lr: float, count: int
) -> None:
    """The authors' average is still on its way from the variance 0 and the loss 1."""
    v, f = numbers
    exact = lr * v / f
    seen = see(moments_of(v, 1.0), loss=f, base_lr=lr)
    size = told(CABS(), seen, times=count).next_batch_size
    if abs(exact - 64) < 1e-6 * 64:
        return
    assert size == pytest.approx(max(exact, 2.0), abs=1.01, rel=1e-6)


def test_the_batch_stays_within_the_interval_of_the_unbiased_averages() -> None:
    """Variances between 6,000 and 14,000 and the rate 0.01: about 100, so 90 is not far from it."""
    rule, state = CABS(), CABS().init()
    for step in range(12):
        v = 6000.0 if step % 2 else 14_000.0
        seen = see(moments_of(v, 1.0), loss=1.0, base_lr=0.01, batch_size=90)
        state, decision = rule.update(state, seen, Decision(next_batch_size=90, base_steps=1.0))
        assert decision.next_batch_size == 90
    low, high = map(float, decision.reason.partition("[")[2].partition("]")[0].split(", "))
    assert 60 < low < 90 < 100 < high < 150


def test_the_rate_is_that_of_the_step() -> None:
    seen = see(moments_of(1e6, 1.0), batch_size=256, loss=1.0, base_lr=0.001)
    plain, scaled = told(CABS(), seen), told(chain(LinearScaling(), CABS()), seen)
    assert plain.next_batch_size in (1000, 1001), "up to rounding"
    assert scaled.next_batch_size in (4000, 4001)
    assert plain.reason.startswith(
        "lr 0.001 x variance 1.855e+05 / loss 1, interval [1000, 1000]; batch size 100"
    )
    bounded = told(chain(CABS(), ClampBatch(min=16, max=32)), seen)
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
