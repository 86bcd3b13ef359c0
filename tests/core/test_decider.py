"""Test the decider: a rule with its state and clocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, GradientMoments, Measurement, Reading
from largebatch.core.rule import chain

NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gives:
    """Return a fixed decision and count the updates."""

    decision: Decision
    needs: frozenset[str] = frozenset({"moments", "loss"})
    changes = bounds = forbids = NONE

    def init(self) -> int:
        return 0

    def update(self, state: int, seen: Measurement, proposed: Decision) -> tuple[int, Decision]:
        return state + 1, self.decision


WORTH_THREE = Decision(
    next_batch_size=128, base_steps=3.0, lr_multiplier=0.5, measure_next=frozenset({"moments"})
)


def begin(rule: Any = None, **more: Any) -> Decider:
    rule = Gives(decision=WORTH_THREE) if rule is None else rule
    return Decider.start(rule, **{"base_batch_size": 32, "batch_size": 64, **more})


def step(decider: Decider, **reading: Any) -> tuple[Decider, Decision]:
    return decider.decide(decider.see(Reading(**{"samples": 64, **reading}), base_lr=0.1))


def test_a_start_asks_for_the_statistics_and_not_for_the_facts() -> None:
    decider = begin()
    assert decider.measure == {"moments"}
    assert (decider.step, decider.samples, decider.base_steps) == (0, 0, 0.0)
    assert decider.state == (0,)


def test_a_measurement_is_the_reading_with_the_clocks_before_the_step() -> None:
    m = GradientMoments(batch_size=64, parts=2, batch_sqnorm=1.0, variance=2.0)
    budget = Budget(samples=1000)
    decider = replace(
        begin(ranks=4, dataset_size=500, budget=budget),
        step=7,
        samples=100,
        base_steps=9.5,
        skipped=2,
    )
    reading = Reading(
        samples=60,
        finite=False,
        loss=1.5,
        batch_sqnorm=2.5,
        moments=m,
        preconditioned_moments=m,
        inner_product_variance=3.5,
    )
    assert decider.see(reading, base_lr=0.1) == Measurement(
        step=7,
        samples=100,
        base_steps=9.5,
        batch_size=60,
        base_batch_size=32,
        ranks=4,
        base_lr=0.1,
        loss=1.5,
        finite=False,
        batch_sqnorm=2.5,
        moments=m,
        preconditioned_moments=m,
        inner_product_variance=3.5,
        dataset_size=500,
        budget=budget,
        skipped=2,
    )


def test_a_step_advances_the_clocks_and_applies_the_decision() -> None:
    before = begin(ranks=2, dataset_size=500, budget=Budget(samples=1000))
    after, decision = step(before, samples=60)
    assert decision == WORTH_THREE
    assert after == replace(before, state=(1,), batch_size=128, step=1, samples=60, base_steps=3.0)


@given(sizes=st.lists(st.integers(1, 10**6), max_size=20))
def test_without_a_rule_the_clock_is_samples_over_the_base_batch(sizes: list[int]) -> None:
    decider = begin(chain())
    for samples in sizes:
        decider, decision = step(decider, samples=samples)
        assert decision.lr_multiplier == 1.0
        assert decision.next_batch_size == 64
    assert decider.base_steps == pytest.approx(sum(sizes) / 32)
    assert (decider.samples, decider.step) == (sum(sizes), len(sizes))


def test_a_step_that_is_not_finite_counts_its_samples_alone() -> None:
    before, _ = step(begin(), samples=60)
    after, decision = step(before, samples=128, finite=False)
    assert after == replace(before, samples=188, skipped=1)
    assert step(after, finite=False)[0].skipped == 2
    assert decision.base_steps == 0.0
    assert decision.measure_next == before.measure
    assert "not finite" in decision.reason


def test_a_run_is_finished_when_its_budget_is_used() -> None:
    decider = begin(budget=Budget(base_steps=6.0))
    finished = []
    for _ in range(3):
        finished.append(decider.finished)
        decider, _ = step(decider)
    assert finished == [False, False, True]
    assert not begin().finished


@pytest.mark.parametrize("wrong", [{"base_batch_size": 0}, {"batch_size": 0}, {"batch_size": -1}])
def test_a_batch_of_no_samples_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number of samples"):
        begin(**wrong)


def test_an_unknown_size_of_the_dataset_is_refused_only_where_it_is_needed() -> None:
    rule = Gives(decision=WORTH_THREE, needs=frozenset({"dataset_size"}))
    assert begin(rule, dataset_size=10).dataset_size == 10
    with pytest.raises(ValueError, match="Gives needs 'dataset_size'"):
        begin(rule)


@pytest.mark.parametrize(
    "wrong",
    [
        {"next_batch_size": 0},
        {"lr_multiplier": math.nan},
        {"lr_multiplier": math.inf},
        {"lr_multiplier": -1.0},
        {"base_steps": math.inf},
        {"base_steps": -0.5},
        {"measure_next": frozenset({"loss"})},
    ],
)
def test_an_impossible_decision_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Gives.* returned an invalid decision"):
        step(begin(Gives(decision=replace(WORTH_THREE, **wrong))))


@pytest.mark.parametrize("name", ["base_batch_size", "batch_size", "dataset_size"])
@pytest.mark.parametrize("value", [64.0, 64.5, float("nan"), "64"])
def test_a_size_that_no_record_could_hold_is_refused_at_the_start(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        begin(**{name: value})


def test_a_batch_that_is_no_whole_number_is_a_bug_in_a_rule() -> None:
    decision = replace(WORTH_THREE, next_batch_size=96.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bug in one of its rules"):
        step(begin(Gives(decision=decision)))
