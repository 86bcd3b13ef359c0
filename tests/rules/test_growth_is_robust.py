"""Growing batches in runs that are not smooth: wild steps, short batches, bounds, odd losses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from largebatch import methods
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Reading
from largebatch.core.rule import Rule, chain
from largebatch.rules import (
    CABS,
    AdaptiveGrowth,
    AdaScale,
    Averaged,
    ClampBatch,
    Every,
    InnerProductTest,
    LimitGrowth,
    NormTest,
)
from largebatch.rules.stages import Stages

Step = Callable[[int], tuple[float, float]]
"""The step's number -> (variance, squared norm of the true gradient)."""


def run(
    rule: Rule,
    steps: int,
    at: Step,
    *,
    first: int = 64,
    base: int = 64,
    loss: float = 1.0,
    given: Callable[[int, int], int] = lambda step, wanted: wanted,
) -> list[Decision]:
    """Decide step by step; `given` is the batch that a loader has for a wanted one."""
    decider, found = (
        Decider.start(rule, base_batch_size=base, batch_size=first, dataset_size=10**6),
        [],
    )
    for step in range(steps):
        variance, sqnorm = at(step)
        size = given(step, decider.batch_size)
        moments = GradientMoments(
            batch_size=size, parts=8, batch_sqnorm=sqnorm + variance / size, variance=variance
        )
        asked = decider.measure
        reading = Reading(
            samples=size,
            loss=loss,
            batch_sqnorm=moments.batch_sqnorm,
            moments=moments if "moments" in asked else None,
            inner_product_variance=variance * sqnorm if "inner_product_variance" in asked else None,
        )
        decider, decision = decider.decide(decider.see(reading, base_lr=0.1))
        found.append(decision)
    return found


def first_above(found: list[Decision], size: int) -> int:
    return next(step for step, one in enumerate(found) if one.next_batch_size > size)


@pytest.mark.parametrize("rule", [methods.adasgd(), methods.adaptive_growth()])
def test_one_step_with_a_huge_gradient_does_not_block_the_batch(rule: Rule) -> None:
    def noisy(spike: float) -> Step:
        generator = np.random.default_rng(0)

        def at(step: int) -> tuple[float, float]:
            noise = 1000.0 if step < 110 else 10_000.0
            unit = spike * spike if step == 100 else 1.0
            a, b = generator.uniform(0.8, 1.2, size=2)
            return float(a) * noise * unit, float(b) * unit

        return at

    calm = first_above(run(rule, 600, noisy(1.0)), 4000)
    wild = first_above(run(rule, 600, noisy(100.0)), 4000)
    assert wild <= calm + 30


def test_steps_without_any_gradient_are_not_remembered() -> None:
    def at(step: int) -> tuple[float, float]:
        return (0.0, 0.0) if step < 300 else (10_000.0, 1.0)

    found = run(methods.adasgd(every=1), 400, at)
    assert first_above(found, 4000) < 330


def test_one_short_batch_does_not_replace_what_is_known() -> None:
    """At step 100 an epoch ends with 16 samples of 512; with them a tenth of the past is forgotten,
    for the ten steps since the last measurement."""

    def at(step: int) -> tuple[float, float]:
        return (500.0, 9.0) if step == 100 else (500.0, 1.0)

    found = run(
        Every(AdaScale(), steps=10), 130, at, first=512,
        given=lambda step, wanted: 16 if step == 100 else wanted,
    )  # fmt: skip
    gains = [decision.base_steps for decision in found]
    assert gains[101] == pytest.approx(gains[99], rel=0.02)
    assert gains[-1] == pytest.approx(gains[99], rel=0.02)


def test_a_short_batch_does_not_shrink_the_wish() -> None:
    rule = methods.adasgd(growth=1.2)
    found = run(
        rule, 60, lambda step: (1e5, 1.0),
        given=lambda step, wanted: 3 if step % 7 == 6 else wanted,
    )  # fmt: skip
    sizes = [decision.next_batch_size for decision in found]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 100


def test_the_batch_comes_down_to_the_base_batch_and_not_below_it() -> None:
    sizes = [
        decision.next_batch_size
        for decision in run(methods.adasgd(), 200, lambda step: (0.5, 1.0), first=256, base=64)
    ]
    assert (min(sizes), sizes[-1]) == (64, 64)
    smaller = run(methods.adasgd(), 200, lambda step: (0.5, 1.0), first=32, base=64)
    assert {decision.next_batch_size for decision in smaller} == {32}
    rule = chain(NormTest(eta=1.0, denominator="unbiased"), LimitGrowth(shrink=0.5))
    free = run(rule, 200, lambda step: (0.5, 1.0), first=256, base=64)
    assert free[-1].next_batch_size == 2


def test_growth_is_limited_over_a_window_of_steps() -> None:
    rule = chain(NormTest(eta=1.0, denominator="unbiased"), LimitGrowth(factor=2.0, over=10))
    sizes = [
        decision.next_batch_size for decision in run(rule, 31, lambda step: (1e5, 1.0), first=64)
    ]
    assert sizes[:3] == [64, 64, 64], "four measurements are needed"
    assert sizes[3:30] == [128] * 7 + [256] * 10 + [512] * 10
    assert "at most x2 in 10 steps" in run(rule, 7, lambda step: (1e5, 1.0))[-1].reason


@pytest.mark.parametrize("loss", [-1.0, -0.01, 0.0])
def test_a_loss_that_is_not_above_zero_leaves_the_batch_of_cabs(loss: float) -> None:
    found = run(CABS(), 40, lambda step: (30.0, 1.0), loss=loss)
    assert found[-1].next_batch_size == 64


@pytest.mark.parametrize("unit", [1.0, 1e4])
def test_averaged_moments_are_in_units_of_the_gradient(unit: float) -> None:
    """Rules that read a moment beside the loss or another statistic see numbers of one unit."""
    for rule in (CABS(), InnerProductTest()):
        bare, averaged = (
            run(one, 20, lambda step: (16_000.0 * unit, unit), loss=unit)[-1]
            for one in (rule, Averaged(rule))
        )
        assert averaged.next_batch_size == bare.next_batch_size


def test_short_windows_still_know_an_interval() -> None:
    def at(step: int) -> tuple[float, float]:
        return 1000.0 if step < 100 else 50_000.0, 1.0

    rule = chain(
        Averaged(NormTest(eta=1.0, denominator="unbiased"), window=20.0), LimitGrowth(factor=2.0)
    )
    assert run(rule, 400, at)[-1].next_batch_size == pytest.approx(50_000, rel=0.1)


def test_stages_beyond_a_cap_are_not_gone_through() -> None:
    table = Stages(batch=tuple(2.0**m for m in range(12)), lr=tuple(1.4**m for m in range(12)))

    def at(step: int) -> tuple[float, float]:
        return 1e6 if step < 200 else 16.0, 1.0

    rule = chain(AdaptiveGrowth(stages=table), ClampBatch(max=64))
    found = run(rule, 400, at, first=16, base=16)
    capped = found[150]
    assert (capped.next_batch_size, capped.lr_multiplier) == (64, pytest.approx(1.4**2))
    down = next(step for step, one in enumerate(found) if step > 200 and one.next_batch_size < 64)
    assert down < 300
    assert found[-1].next_batch_size == 16
    assert found[-1].lr_multiplier == pytest.approx(1.0)
