"""Watching without changing."""

from __future__ import annotations

from typing import Any

import pytest

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import chain
from largebatch.rules import Observe


def test_observe_asks_for_its_statistics_and_changes_nothing_else() -> None:
    seen = Measurement(step=0, samples=0, base_steps=0.0, batch_size=64, base_batch_size=64)
    proposed = Decision(
        next_batch_size=9, base_steps=3.0, lr_multiplier=2.0, measure_next=frozenset({"moments"})
    )
    _, decision = Observe(statistics=("inner_product_variance",)).update(None, seen, proposed)
    assert decision == Decision(
        next_batch_size=9,
        base_steps=3.0,
        lr_multiplier=2.0,
        measure_next=frozenset({"moments", "inner_product_variance"}),
    )


def test_watchers_in_a_chain_ask_for_the_union() -> None:
    whole = chain(Observe(), Observe(statistics=("preconditioned_moments",)))
    assert whole.needs == {"moments", "preconditioned_moments"}


@pytest.mark.parametrize("statistics", [("loss",), ("momentum",), "moments", ["moments"]])
def test_what_is_not_a_tuple_of_statistics_is_refused(statistics: Any) -> None:
    with pytest.raises(ValueError, match=r'Observe\(statistics=\("moments",\)\)'):
        Observe(statistics=statistics)
