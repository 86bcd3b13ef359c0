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
from largebatch.core.rule import chain
from largebatch.rules.sizes import LARGEST, noise_ratio, proposal, whole_batch


def test_of_two_rules_that_propose_a_batch_the_second_is_refused() -> None:
    proposers = {row.name: row.rule for row in ROWS if "batch" in row.rule.changes}
    assert len(proposers) > 15
    for (one, rule), (another, other) in product(proposers.items(), repeat=2):
        with pytest.raises(ValueError, match="cannot stand in one chain"):
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
        (4.0, -1.0, math.inf),
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
