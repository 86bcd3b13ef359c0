"""A batch that grows when several tests asked for it."""

from __future__ import annotations

import pytest
from batch_rules import moments_of, see
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.rule import chain
from largebatch.rules import AdaScale, Every, Hysteresis, NormTest
from largebatch.rules.hysteresis import HysteresisState

WANTS = st.lists(st.sampled_from([32, 64, 128]), max_size=30)


def held(rule: Hysteresis, wants: list[int]) -> list[int]:
    """What becomes of each wish, always of a batch of 64 that was tested."""
    state, seen, found = rule.init(), see(moments_of(1.0, 1.0)), []
    for wanted in wants:
        proposed = Decision(next_batch_size=wanted, base_steps=1.0)
        state, decision = rule.update(state, seen, proposed)
        found.append(decision.next_batch_size)
    return found


@given(wants=WANTS, asked=st.integers(1, 4), more=st.integers(0, 3))
def test_hysteresis_grows_when_enough_of_the_last_tests_asked_for_more(
    wants: list[int], asked: int, more: int
) -> None:
    last: list[bool] = []
    for wanted, size in zip(
        wants, held(Hysteresis(asked=asked, of=asked + more), wants), strict=True
    ):
        last = [*last, wanted > 64][-(asked + more) :]
        grows = wanted > 64 and sum(last) >= asked
        assert size == (128 if grows else min(wanted, 64))
        if grows:
            last = []


def test_two_of_three_by_hand() -> None:
    wants = [128, 64, 128, 128, 64, 64, 128, 128]
    assert held(Hysteresis(), wants) == [64, 64, 128, 64, 64, 64, 64, 128]


def test_hysteresis_of_one_test_holds_no_batch_back() -> None:
    assert held(Hysteresis(asked=1, of=1), [128, 32, 128]) == [128, 32, 128]


def test_a_step_that_did_not_measure_is_no_test() -> None:
    proposed = Decision(next_batch_size=128, base_steps=1.0)
    state = HysteresisState(larger=(True,))
    assert Hysteresis().update(state, see(), proposed) == (state, proposed)


def test_within_every_a_neighbours_measurements_are_no_tests() -> None:
    rule = chain(Every(chain(NormTest(), Hysteresis()), steps=3), AdaScale())
    state, sizes = rule.init(), []
    for step in range(8):
        seen = see(moments_of(640.0, 1.0), step=step)
        proposed = Decision(next_batch_size=64, base_steps=1.0)
        state, decision = rule.update(state, seen, proposed)
        sizes.append(decision.next_batch_size)
    assert sizes == [64, 64, 64, 2560, 64, 64, 64, 64]


@pytest.mark.parametrize(("asked", "of"), [(0, 3), (4, 3), (-1, -1)])
def test_impossible_numbers_are_refused(asked: int, of: int) -> None:
    with pytest.raises(ValueError, match=r"Example: Hysteresis\(asked=2, of=3\)"):
        Hysteresis(asked=asked, of=of)
