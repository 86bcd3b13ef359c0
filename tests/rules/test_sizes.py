"""From the batch that is required to the one that is proposed."""

from __future__ import annotations

import math
from itertools import product

import pytest
from batch_rules import see
from battery import ROWS
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.range import Range
from largebatch.core.rule import chain
from largebatch.rules.sizes import (
    LARGEST,
    by_evidence,
    evidence,
    noise_ratio,
    proposal,
    scaled,
    whole_batch,
)

INTERVALS = st.lists(st.floats(0, 1e5) | st.just(math.inf), min_size=3, max_size=3).map(
    lambda ends: Range(low=sorted(ends)[0], value=sorted(ends)[1], high=sorted(ends)[2])
)


def hand(size: int) -> Decision:
    return Decision(next_batch_size=size, base_steps=1.0)


def test_of_two_rules_that_propose_a_batch_the_second_is_refused() -> None:
    proposers = {row.name: row.rule for row in ROWS if "batch" in row.rule.changes}
    assert len(proposers) > 15
    for (one, rule), (another, other) in product(proposers.items(), repeat=2):
        with pytest.raises(ValueError, match="cannot be in one chain"):
            chain(rule, other)
            pytest.fail(f"{one} and {another} stand in one chain")


@given(
    required=st.floats(0, 1e20) | st.just(math.inf),
    ranks=st.integers(1, 8),
    size=st.none() | st.integers(1, 10**6),
)
def test_a_whole_batch_is_enough_and_no_more_than_one_sample_too_much(
    required: float, ranks: int, size: int | None
) -> None:
    batch = whole_batch(required, ranks=ranks, dataset_size=size)
    least, most = max(2, ranks), LARGEST if size is None else size
    assert batch >= least
    if batch > least:
        assert batch <= most
        # 1e-12 of the required batch may be missing, which is what floats round by
        assert required * (1.0 - 1e-12) <= batch < required + 1 or batch == most


@given(size=st.integers(2, 10**6), tenths=st.integers(11, 99))
def test_a_whole_number_that_floats_miss_is_met(size: int, tenths: int) -> None:
    """The naive twin is a product of whole numbers."""
    assert whole_batch(tenths / 10 * size) == -(-tenths * size // 10)


@pytest.mark.parametrize("required", [110.0 + 1e-9, 110.001, 110.9999])
def test_a_fraction_that_is_no_rounding_asks_for_the_next_sample(required: float) -> None:
    assert whole_batch(required) == 111


@pytest.mark.parametrize("required", [float(LARGEST), 1e13, math.inf])
def test_a_batch_without_bound_is_the_largest(required: float) -> None:
    assert whole_batch(required) == LARGEST


@pytest.mark.parametrize(
    ("variance", "sqnorm", "ratio"),
    [
        (4.0, 2.0, 2.0),
        (4.0, 0.0, math.inf),
        (4.0, -1.0, None),
        (0.0, -1.0, None),
        (0.0, 2.0, 0.0),
        (-1.0, 2.0, 0.0),
        (0.0, 0.0, None),
        (-1.0, -1.0, None),
        (math.inf, 1.0, None),
        (1.0, math.nan, None),
        (1e300, 1e-300, math.inf),
    ],
)
def test_the_ratio_in_its_limits(variance: float, sqnorm: float, ratio: float | None) -> None:
    assert noise_ratio(variance=variance, sqnorm=sqnorm) == ratio


@pytest.mark.parametrize("required", [None, math.nan])
def test_an_unknown_requirement_keeps_what_was_proposed(required: float | None) -> None:
    proposed = Decision(next_batch_size=77, base_steps=1.0)
    decision = proposal(proposed, see(), required=required, because="why")
    assert decision == Decision(next_batch_size=77, base_steps=1.0, reason="why")


@given(now=st.integers(2, 5000), required=INTERVALS)
def test_a_batch_changes_only_if_it_lies_outside_of_the_interval(now: int, required: Range) -> None:
    size = by_evidence(hand(now), see(), required=required, because="").next_batch_size
    if required.low > now:
        most = 2.0 * (required.low if required.low < math.inf else now)
        assert now < size <= math.ceil(min(required.value, most))
        assert size >= min(required.value, most)
    elif required.high < now:
        least = max(required.value, required.high / 2.0)
        assert least <= size <= max(math.ceil(least), 2)
        assert size <= now
    else:
        assert size == now


@pytest.mark.parametrize(
    ("low", "value", "high", "size", "reason"),
    [
        (90.0, 300.0, 900.0, 180, "why; batch size 180, limited to twice the lower bound"),
        (90.0, 150.0, math.inf, 150, "why; batch size 150"),
        (65.0, math.inf, math.inf, 130, "why; batch size 130, limited to twice the lower bound"),
        (
            math.inf,
            math.inf,
            math.inf,
            128,
            "why; batch size 128, limited to twice the current batch size",
        ),
        (64.0, 300.0, 900.0, 64, "why; batch size 64 stays"),
        (1.0, 2.0, 64.0, 64, "why; batch size 64 stays"),
        (1.0, 2.0, 60.0, 30, "why; batch size 30, limited to half the upper bound"),
        (1.0, 50.0, 60.0, 50, "why; batch size 50"),
        (0.0, 0.0, 0.0, 2, "why; batch size 2"),
    ],
)
def test_the_batch_of_an_interval_by_hand(
    low: float, value: float, high: float, size: int, reason: str
) -> None:
    required = Range(low=low, value=value, high=high)
    decision = by_evidence(hand(64), see(), required=required, because="why")
    assert (decision.next_batch_size, decision.reason) == (size, reason)


def test_without_an_interval_the_batch_stays_and_the_reason_says_so() -> None:
    decision = by_evidence(hand(77), see(), required=None, because="not known yet")
    assert (decision.next_batch_size, decision.reason) == (77, "not known yet; batch size 77 stays")


@given(required=INTERVALS, level=st.floats(0.1, 1e4))
def test_the_words_of_a_test_say_on_which_side_the_interval_lies(
    required: Range, level: float
) -> None:
    words = evidence(required, level=level, name="x").partition("]")[2]
    if required.low > level:
        assert words == f" > eta {level:.4g}, batch too small"
    elif required.high < level:
        assert words == f" < eta {level:.4g}, batch too large"
    else:
        assert words == f", interval contains eta {level:.4g}"


@given(span=INTERVALS, factor=st.floats(0.1, 10.0), plus=st.floats(0.0, 10.0))
def test_a_scaled_interval_has_scaled_ends(span: Range, factor: float, plus: float) -> None:
    found = scaled(span, factor=factor, plus=plus)
    for one, end in ((span.low, found.low), (span.value, found.value), (span.high, found.high)):
        assert end == pytest.approx(factor * (plus + one))
