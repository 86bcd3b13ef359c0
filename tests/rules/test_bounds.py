"""Bounds on the batch and on the rate."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import Rule
from largebatch.rules import ClampBatch, ClampLr, LimitGrowth

SIZES = st.integers(1, 100_000)


def bounded(rule: Rule, *, size: int = 64, lr: float = 1.0, batch_size: int = 64) -> Decision:
    seen = Measurement(step=0, samples=0, base_steps=0.0, batch_size=batch_size, base_batch_size=64)
    proposed = Decision(next_batch_size=size, base_steps=1.5, lr_multiplier=lr, reason="why")
    _, decision = rule.update(None, seen, proposed)
    assert decision.base_steps == 1.5
    if decision.next_batch_size == size and decision.lr_multiplier == lr:
        assert decision is proposed  # nothing bounded, nothing said
    else:
        assert decision.reason.startswith("why; ")
    return decision


@given(wanted=SIZES, least=SIZES, width=SIZES, multiple=st.integers(1, 500))
def test_a_clamped_batch_is_a_multiple_within_the_bounds(
    wanted: int, least: int, width: int, multiple: int
) -> None:
    most = least + width
    assume(-(-least // multiple) * multiple <= most)
    rule = ClampBatch(min=least, max=most, multiple_of=multiple)
    size = bounded(rule, size=wanted).next_batch_size
    assert least <= size <= most
    assert size % multiple == 0
    assert bounded(rule, size=size).next_batch_size == size
    if least <= wanted <= most - multiple:
        assert wanted <= size < wanted + multiple


@pytest.mark.parametrize(
    ("rule", "wanted", "size"),
    [
        (ClampBatch(), 77, 77),
        (ClampBatch(min=100), 77, 100),
        (ClampBatch(max=50), 77, 50),
        (ClampBatch(multiple_of=16), 77, 80),
        (ClampBatch(multiple_of=16), 80, 80),
        (ClampBatch(max=79, multiple_of=16), 77, 64),
        (ClampBatch(min=3, multiple_of=8), 1, 8),
        (LimitGrowth(), 200, 128),
        (LimitGrowth(), 128, 128),
        (LimitGrowth(), 2, 2),
        (LimitGrowth(shrink=0.5), 2, 32),
        (LimitGrowth(shrink=1.0), 2, 64),
        (LimitGrowth(factor=1.0), 200, 64),
        (LimitGrowth(factor=1.001), 200, 65),
        (LimitGrowth(factor=1.25, shrink=0.75), 1, 48),
    ],
)
def test_a_bound_has_its_hand_computed_size(rule: Rule, wanted: int, size: int) -> None:
    assert bounded(rule, size=wanted).next_batch_size == size


@pytest.mark.parametrize(
    ("factor", "shrink", "most", "least"), [(1.15, 0.29, 115, 29), (1.1, 0.57, 110, 57)]
)
def test_a_limit_that_is_a_whole_number_is_not_missed_by_rounding(
    factor: float, shrink: float, most: int, least: int
) -> None:
    """1.15 x 100 is 114.99999999999999 in floating point, and 0.57 x 100 is 56.99999999999999."""
    rule = LimitGrowth(factor=factor, shrink=shrink)
    assert bounded(rule, size=500, batch_size=100).next_batch_size == most
    assert bounded(rule, size=1, batch_size=100).next_batch_size == least


@given(wanted=st.floats(0, 1e6), low=st.floats(0, 1e3), width=st.floats(0, 1e3))
def test_a_clamped_rate_is_the_nearest_within_the_bounds(
    wanted: float, low: float, width: float
) -> None:
    rule = ClampLr(min=low, max=low + width)
    rate = bounded(rule, lr=wanted).lr_multiplier
    assert rate == min(max(wanted, low), low + width)


def test_no_bounds_change_nothing() -> None:
    for lr in (0.0, 1.0, 1e300):
        assert bounded(ClampLr(), lr=lr).lr_multiplier == lr
    assert bounded(ClampBatch(), size=1).next_batch_size == 1


@given(now=SIZES, wanted=SIZES, factor=st.floats(1.0, 10.0), shrink=st.floats(0.01, 1.0))
def test_growth_stays_within_its_factors_and_is_never_stuck(
    now: int, wanted: int, factor: float, shrink: float
) -> None:
    rule = LimitGrowth(factor=factor, shrink=shrink)
    size = bounded(rule, size=wanted, batch_size=now).next_batch_size
    assert shrink * now * (1 - 1e-11) <= size <= max(factor * now * (1 + 1e-11), now + 1)
    if wanted > now and factor > 1.0:
        assert size > now
    if wanted < now:
        assert size <= now


def test_growth_to_a_far_size_takes_the_fewest_doublings() -> None:
    size, history = 64, [64]
    while size < 1000:
        size = bounded(LimitGrowth(), size=1000, batch_size=size).next_batch_size
        history.append(size)
    assert history == [64, 128, 256, 512, 1000]


def test_a_limit_says_what_it_held_back() -> None:
    rule = LimitGrowth(shrink=0.75)
    assert (
        bounded(rule, size=500).reason
        == "why; growth from batch size 64 limited to 128, proposed 500"
    )
    assert (
        bounded(rule, size=20).reason
        == "why; shrinking from batch size 64 limited to 48, proposed 20"
    )
    assert bounded(rule, size=100).reason == "why"
    assert (
        bounded(LimitGrowth(shrink=1.0), size=20).reason
        == "why; batch size kept at 64 by LimitGrowth, proposed 20"
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClampBatch(min=0),
        lambda: ClampBatch(min=10, max=9),
        lambda: ClampBatch(min=10, max=15, multiple_of=16),
        lambda: ClampBatch(multiple_of=0),
        lambda: ClampBatch(max=64.0),  # type: ignore[arg-type]
        lambda: ClampBatch(min=1.5),  # type: ignore[arg-type]
        lambda: ClampBatch(max="64"),  # type: ignore[arg-type]
        lambda: ClampLr(min=-1.0),
        lambda: ClampLr(min=2.0, max=1.0),
        lambda: ClampLr(max=math.nan),
        lambda: ClampLr(min=math.inf),
        lambda: LimitGrowth(factor=0.9),
        lambda: LimitGrowth(factor=math.inf),
        lambda: LimitGrowth(shrink=0.0),
        lambda: LimitGrowth(shrink=1.5),
    ],
)
def test_an_impossible_bound_is_refused_with_an_example(make: Any) -> None:
    with pytest.raises(ValueError, match=r"\w+\(.* was given, but .*Example: \w+\("):
        make()
