"""A run whose rule could grow the batch, and did not, says so once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

import largebatch as lb
from largebatch.act.no_growth import FEWEST, NoGrowth, chooses_by_measuring
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, GradientMoments, Measurement, Reading
from small_rules import Facts, Growing
from small_runs import data, loss_of, sgd, small_model

STEPS = 120


@dataclass(frozen=True, kw_only=True)
class Measuring(Facts):
    """Measures in each step, and grows the batch in one of them."""

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    changes: ClassVar[frozenset[str]] = frozenset({"batch"})
    at: int | None = None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        size = 2 * proposed.next_batch_size if seen.step == self.at else proposed.next_batch_size
        return state, proposed.measuring(self.needs).resized(size, because=f"test {seen.step}")


def build(rule: Any, *, batch_size: int = 8) -> lb.Controller:
    model = small_model()
    batches = lb.BatchLoader(data(48), batch_size=batch_size, max_micro_batch_size=4, seed=0)
    return lb.Controller(model, sgd(model), rule, batches, base_batch_size=8)


def go(control: lb.Controller, *, until: int | None = None, **budget: float) -> list[str]:
    """Train and return what was warned of, each with the step after which it came."""
    told = []
    for batch in control.steps(**(budget or {"steps": STEPS})):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            control.step()
        told += [f"{control.optimizer_steps}: {one.message}" for one in caught]
        assert all(one.category is RuntimeWarning for one in caught)
        if control.optimizer_steps == until:
            break
    return told


def test_a_batch_that_did_not_grow_in_a_quarter_of_the_budget_is_named_once() -> None:
    (text,) = go(build(Measuring()))
    assert text.startswith(
        "30: The batch did not grow: it has 8 samples after 25% of the budget (30 optimizer steps, "
        "240 samples). The reason given at the last measurement was: test 29."
    )
    assert "lb.chain(), batches, base_batch_size=8)" in text
    assert "lb.methods.adasgd(every=2)" in text
    assert "lb.methods.adasgd(max=4096)" in text


@pytest.mark.parametrize(
    "budget", [{"samples": 8 * STEPS}, {"base_steps": STEPS}, {"epochs": 8 * STEPS / 48}]
)
def test_the_quarter_is_one_of_any_budget(budget: dict[str, float]) -> None:
    (text,) = go(build(Measuring()), **budget)
    assert text.startswith("30: ")


@pytest.mark.parametrize(("at", "told"), [(0, False), (28, False), (29, False), (30, True)])
def test_a_batch_that_grew_before_is_not_named(at: int, told: bool) -> None:
    """The step that ends the quarter, number 29, may still grow it."""
    assert bool(go(build(Measuring(at=at)))) is told


def test_a_quarter_of_a_few_steps_says_nothing() -> None:
    assert go(build(Measuring()), steps=FEWEST - 1) == []
    (text,) = go(build(Measuring()), steps=FEWEST + 4)
    assert text.startswith(f"{FEWEST}: ")


@pytest.mark.parametrize(
    "rule",
    [
        lb.AdaScale(), lb.SqrtScaling(), lb.chain(), lb.ClampBatch(max=64), Growing(first=8,
        after_samples=10**6), lb.rules.Growth(stages=lb.rules.Stages(batch=(1, 2)), at=(0.9,)),
        lb.chain(lb.AdaScale(), lb.rules.Growth(stages=lb.rules.Stages(batch=(1, 2)), at=(0.9,))),
        lb.Every(lb.chain(lb.AdaScale(), lb.rules.Milestones(at=(0.9,)))),
        lb.chain(lb.Observe(), lb.rules.Milestones(at=(0.9,)), lb.rules.Hysteresis()),
    ],
)  # fmt: skip
def test_a_rule_on_the_clock_or_for_the_rate_alone_is_exempt(rule: Any) -> None:
    assert not chooses_by_measuring(lb.chain(rule))
    assert go(build(rule), steps=60) == []


@pytest.mark.parametrize(
    "rule",
    [
        lb.methods.adasgd(), lb.methods.adaptive_growth(), lb.methods.full_gradient_growth(),
        lb.methods.noise_scale_control(), lb.Every(lb.Averaged(lb.NormTest())),
        lb.chain(lb.rules.Growth(), lb.rules.ClampToNoiseScale()), lb.rules.CABS(),
    ],
)  # fmt: skip
def test_a_rule_that_measures_for_the_batch_is_watched(rule: Any) -> None:
    assert chooses_by_measuring(lb.chain(rule))


def test_a_batch_that_has_to_stay_for_a_warm_up_is_exempt() -> None:
    rule = lb.AutoWarmUp(after=lb.NormTest())
    assert not chooses_by_measuring(lb.chain(rule))


def told_of_bound(at: float, *, noise_scale: float) -> list[str]:
    """What is said of growth at a fraction of 60 steps under a bound by the noise scale."""
    growth = lb.rules.Growth(stages=lb.rules.Stages(batch=(1, 2)), at=(at,))
    rule = lb.chain(growth, lb.rules.ClampToNoiseScale())
    moments = GradientMoments(
        batch_size=8, parts=4, batch_sqnorm=1.0 + noise_scale / 8, variance=noise_scale
    )
    decider = Decider.start(rule, base_batch_size=8, batch_size=8, budget=Budget(steps=60))
    wait, told = NoGrowth(first=8), []
    for _ in range(60):
        reading = Reading(samples=decider.batch_size, moments=moments)
        seen = decider.see(reading, base_lr=0.1)
        decider, decision = decider.decide(seen)
        told.append(wait.check(seen, decision, after=decider))
    return [text for text in told if text]


def test_a_bound_by_the_noise_is_named_where_it_held_what_the_clock_asked_for() -> None:
    (text,) = told_of_bound(0.1, noise_scale=4.0)
    assert "last measurement was: batch size 16 limited to 8 by the noise scale 4 [4, 4]." in text
    assert told_of_bound(0.9, noise_scale=4.0) == [], "the clock has not asked yet"
    assert told_of_bound(0.1, noise_scale=40.0) == []


@pytest.mark.parametrize(("cut", "told"), [(10, True), (29, True), (30, False), (50, False)])
def test_a_resumed_run_is_told_once(cut: int, told: bool) -> None:
    first = build(Measuring())
    before = go(first, until=cut, steps=STEPS)
    assert len(before) == (not told)
    again = build(Measuring())
    again.load_state_dict(first.state_dict())
    after = go(again, steps=STEPS)
    assert len(after) == told
    if told:
        assert after[0].startswith("30: ")


@pytest.mark.parametrize(("at", "cut"), [(2, 12), (11, 12)])
def test_a_resumed_run_knows_that_its_batch_grew(at: int, cut: int) -> None:
    first = build(Measuring(at=at))
    go(first, until=cut, steps=STEPS)
    again = build(Measuring(at=at))
    again.load_state_dict(first.state_dict())
    assert go(again, steps=STEPS) == []


def test_a_resumed_run_knows_by_its_clocks_that_its_batch_came_down_again() -> None:
    decider = Decider.start(lb.chain(Measuring()), base_batch_size=8, batch_size=8)
    for samples, settled in ((80, False), (79, False), (81, True)):
        wait = NoGrowth(first=8)
        wait.resume(replace(decider, step=9, skipped=1, samples=samples))
        assert wait.settled is settled


def test_nothing_is_said_without_a_budget() -> None:
    """A Controller has one; a decider by itself need not."""
    decider = Decider.start(lb.chain(Measuring()), base_batch_size=8, batch_size=8)
    wait = NoGrowth(first=8)
    for _ in range(1000):
        seen = decider.see(Reading(samples=8), base_lr=0.1)
        decider, decision = decider.decide(seen)
        assert wait.check(seen, decision, after=decider) == ""
    assert not wait.settled


def test_a_statistic_that_was_never_measured_is_named() -> None:
    budget = Budget(steps=100)
    decider = Decider.start(lb.methods.full_gradient_growth(), base_batch_size=8, batch_size=8,
                            budget=budget)  # fmt: skip
    wait, told = NoGrowth(first=8), []
    while not wait.settled:
        seen = decider.see(Reading(samples=8), base_lr=0.1)
        decider, decision = decider.decide(seen)
        told.append(wait.check(seen, decision, after=decider))
    assert len(told) == 25
    assert "FullGradientGrowth has measured nothing so far" in told[-1]
    assert "lb.methods.full_gradient_growth(check=50)" in told[-1]
