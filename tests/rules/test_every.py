"""Measuring in some steps only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decider import Decider
from largebatch.core.measurement import GradientMoments, Reading
from largebatch.core.rule import Rule, chain
from largebatch.rules import AdaScale, Every, Observe


def asked_in(rule: Rule, *, steps: int) -> list[frozenset[str]]:
    decider = Decider.start(rule, base_batch_size=64, batch_size=64)
    asked = []
    for _ in range(steps):
        asked.append(decider.measure)
        decider, _ = decider.decide(decider.see(Reading(samples=64), base_lr=0.1))
    return asked


@given(every=st.integers(1, 12), steps=st.integers(1, 40))
def test_step_zero_and_each_so_many_steps_after_it_measure(every: int, steps: int) -> None:
    asked = asked_in(Every(Observe(), steps=every), steps=steps)
    assert [at for at, names in enumerate(asked) if names] == list(range(0, steps, every))


@given(every=st.integers(1, 12), first=st.integers(0, 15), steps=st.integers(1, 40))
def test_each_of_the_first_steps_measures_too(every: int, first: int, steps: int) -> None:
    asked = asked_in(Every(Observe(), steps=every, first=first), steps=steps)
    expected = [at for at in range(steps) if at < first or at % every == 0]
    assert [at for at, names in enumerate(asked) if names] == expected


def test_in_the_first_steps_a_neighbours_measurements_are_shown() -> None:
    m = GradientMoments(batch_size=64, parts=4, batch_sqnorm=2.0, variance=64.0)
    rule = chain(Every(AdaScale(), steps=5, first=3), Observe())
    decider, counts = Decider.start(rule, base_batch_size=16, batch_size=64), []
    for _ in range(8):
        seen = decider.see(Reading(samples=64, moments=m), base_lr=0.1)
        decider, _ = decider.decide(seen)
        counts.append(decider.state[0].average.count)
    assert counts == [1, 2, 3, 3, 3, 4, 4, 4]


def test_a_neighbour_keeps_measuring_in_each_step() -> None:
    rule = chain(Every(Observe(statistics=("inner_product_variance",)), steps=2), Observe())
    both = frozenset({"moments", "inner_product_variance"})
    assert asked_in(rule, steps=4) == [both, {"moments"}, both, {"moments"}]


def test_the_longer_of_two_nested_periods_rules_when_it_is_a_multiple() -> None:
    asked = asked_in(Every(Every(Observe(), steps=2), steps=4), steps=9)
    assert [at for at, names in enumerate(asked) if names] == [0, 4, 8]


def test_what_a_neighbour_measures_in_between_is_not_shown() -> None:
    m = GradientMoments(batch_size=64, parts=4, batch_sqnorm=2.0, variance=64.0)
    rule, gains = chain(Every(AdaScale(window=1.0), steps=2), Observe()), []
    decider = Decider.start(rule, base_batch_size=16, batch_size=64)
    for step in range(4):
        moments = replace(m, variance=0.0 if step % 2 else 64.0)
        seen = decider.see(Reading(samples=64, moments=moments), base_lr=0.1)
        decider, decision = decider.decide(seen)
        gains.append(decision.lr_multiplier)
    assert gains == [2.5] * 4


def test_a_skipped_step_measures_again() -> None:
    decider = Decider.start(Every(Observe(), steps=5), base_batch_size=64, batch_size=64)
    lost, _ = decider.decide(decider.see(Reading(samples=64, finite=False), base_lr=0.1))
    assert lost.measure == {"moments"}
    after, _ = lost.decide(lost.see(Reading(samples=64), base_lr=0.1))
    assert after.measure == frozenset()


@given(every=st.integers(1, 9), steps=st.integers(1, 30))
def test_constant_moments_give_the_same_gains_as_measuring_always(every: int, steps: int) -> None:
    m = GradientMoments(batch_size=64, parts=4, batch_sqnorm=2.0, variance=64.0)
    gains = []
    for rule in (AdaScale(), Every(AdaScale(), steps=every)):
        decider, found = Decider.start(rule, base_batch_size=16, batch_size=64), []
        for _ in range(steps):
            reading = Reading(samples=64, moments=m if decider.measure else None)
            decider, decision = decider.decide(decider.see(reading, base_lr=0.1))
            found.append(decision.lr_multiplier)
        gains.append(found)
    assert gains[0] == pytest.approx(gains[1], rel=1e-12)


def test_a_class_in_place_of_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="The class Observe was given"):
        Every(Observe)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"steps": -3}, {"steps": 2.5}, {"steps": "10"}, {"first": -1}, {"first": 1.0}],
)
def test_steps_that_are_no_whole_number_are_refused_by_name(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(
        ValueError, match=rf"^{name}={value!r} was given, but {name} must be a whole"
    ):
        Every(AdaScale(), **wrong)
