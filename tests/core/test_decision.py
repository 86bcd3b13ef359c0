"""Test that a refined decision keeps the fields that it does not change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.codec import decode, encode
from largebatch.core.decision import Decision, join
from largebatch.core.measurement import STATISTICS

DECISIONS = st.builds(
    Decision,
    next_batch_size=st.integers(1, 10**6),
    base_steps=st.floats(0, 1e6),
    lr_multiplier=st.floats(0, 1e6),
    measure_next=st.frozensets(st.sampled_from(["moments", "inner_product_variance"])),
    reason=st.sampled_from(["", "gain 3"]),
    notice=st.sampled_from(["", "The rate is too low."]),
)
WHY = st.sampled_from(["", "capped"])


@given(decision=DECISIONS, factor=st.floats(0, 1e3), why=WHY)
def test_scaling_multiplies_the_rate_alone(decision: Decision, factor: float, why: str) -> None:
    assert decision.scaled(factor, because=why) == replace(
        decision,
        lr_multiplier=decision.lr_multiplier * factor,
        reason=join(decision.reason, why),
    )


@given(decision=DECISIONS, rate=st.floats(0, 1e3), why=WHY)
def test_rating_sets_the_rate_alone(decision: Decision, rate: float, why: str) -> None:
    assert decision.rated(rate, because=why) == replace(
        decision, lr_multiplier=rate, reason=join(decision.reason, why)
    )


@given(decision=DECISIONS, size=st.integers(1, 10**6), why=WHY)
def test_resizing_sets_the_next_batch_alone(decision: Decision, size: int, why: str) -> None:
    assert decision.resized(size, because=why) == replace(
        decision, next_batch_size=size, reason=join(decision.reason, why)
    )


@given(decision=DECISIONS, names=st.frozensets(st.sampled_from(sorted(STATISTICS))))
def test_measuring_sets_the_wanted_statistics_alone(
    decision: Decision, names: frozenset[str]
) -> None:
    assert decision.measuring(names) == replace(decision, measure_next=names)


@given(decision=DECISIONS, notice=st.sampled_from(["", "Look at the data."]))
def test_a_notice_is_added_to_those_before_it_alone(decision: Decision, notice: str) -> None:
    said = " ".join([text for text in (decision.notice, notice) if text])
    assert decision.noticed(notice) == replace(decision, notice=said)


def test_a_decision_of_an_earlier_version_has_no_notice() -> None:
    decision = Decision(next_batch_size=8, base_steps=1.0, notice="Look at the data.")
    plain = encode(decision)
    assert decode(Decision, plain) == decision
    del plain["notice"]
    assert decode(Decision, plain) == replace(decision, notice="")


@pytest.mark.parametrize(
    ("a", "b", "both"), [("", "", ""), ("a", "", "a"), ("", "b", "b"), ("a", "b", "a; b")]
)
def test_reasons_join_without_empty_parts(a: str, b: str, both: str) -> None:
    assert join(a, b) == both
