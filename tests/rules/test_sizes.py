"""From the batch that is required to the one that is proposed."""

from __future__ import annotations

import math

import pytest
from batch_rules import see
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.rules.kinds import RULES
from largebatch.rules.sizes import LARGEST, PROPOSERS, noise_ratio, proposal, whole_batch


def test_every_rule_that_proposes_a_batch_forbids_the_others() -> None:
    facts = {name: vars(cls).get("changes", frozenset()) for name, cls in RULES.items()}
    alone = {n: RULES[n] for n, it in facts.items() if isinstance(it, frozenset) and "batch" in it}
    assert set(alone) == PROPOSERS
    assert all(vars(cls)["forbids"] == PROPOSERS for cls in alone.values())


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
        assert required <= batch < required + 1 or batch == most


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
