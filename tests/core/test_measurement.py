"""Test moments, budgets and measurements."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.measurement import (
    STATISTICS,
    Budget,
    GradientMoments,
    Measurement,
    noise_scale,
)

M = GradientMoments(batch_size=8, parts=2, batch_sqnorm=3.0, variance=8.0)
POSITIVE = st.floats(1e-6, 1e6)


def see(**more: Any) -> Measurement:
    facts = {"step": 3, "samples": 300, "base_steps": 6.0, "batch_size": 128, "base_batch_size": 64}
    return Measurement(**{**facts, **more})


def test_an_unmeasured_step_has_the_same_facts_and_no_statistic() -> None:
    measured = see(
        moments=M, preconditioned_moments=M, inner_product_variance=2.0,
        coordinate_noise_scale=math.inf, full_sqnorm=4.0, loss=1.0, batch_sqnorm=3.0,
    )  # fmt: skip
    bare = see(loss=1.0, batch_sqnorm=3.0)
    assert measured.unmeasured() == bare
    assert bare.unmeasured() is bare
    assert {name: getattr(measured, name) is None for name in STATISTICS} == dict.fromkeys(
        STATISTICS, False
    )


def test_progress_after_a_step_is_that_before_the_next_one() -> None:
    for budget in (Budget(samples=1000), Budget(steps=10), Budget(base_steps=20.0)):
        now = see(budget=budget)
        then = see(step=4, samples=428, base_steps=8.5, budget=budget)
        assert now.progress_after(None, base_steps=2.5) == then.progress
    assert see().progress_after(Budget(steps=8), base_steps=1.0) == 0.5
    assert see().progress_after(Budget(steps=2), base_steps=1.0) == 1.0
    with pytest.raises(ValueError, match="the run has no budget"):
        see().progress_after(None, base_steps=1.0)


@given(sqnorm=st.floats(-1e6, 1e6), variance=st.floats(0, 1e6), batch_size=st.integers(1, 10**6))
def test_the_squared_norm_is_the_batchs_less_its_noise(
    sqnorm: float, variance: float, batch_size: int
) -> None:
    m = GradientMoments(
        batch_size=batch_size,
        parts=2,
        batch_sqnorm=sqnorm + variance / batch_size,
        variance=variance,
    )
    assert m.sqnorm == pytest.approx(sqnorm, rel=1e-6, abs=1e-6)


def test_moments_of_two_and_minus_one() -> None:
    """Parts of 3 samples with gradients 2 and -1: mean 1/2, variance of a part 9/2, of a sample
    27/2; the noise of the batch of 6 is 9/4, more than the squared norm of 1/4."""
    m = GradientMoments(batch_size=6, parts=2, batch_sqnorm=0.25, variance=13.5)
    assert m.sqnorm == -2.0
    assert m.noise_scale == math.inf


@given(variance=POSITIVE, sqnorm=POSITIVE, factor=POSITIVE)
def test_the_noise_scale_has_no_unit_of_the_loss(
    variance: float, sqnorm: float, factor: float
) -> None:
    plain = noise_scale(variance=variance, sqnorm=sqnorm)
    scaled = noise_scale(variance=variance * factor, sqnorm=sqnorm * factor)
    assert scaled == pytest.approx(plain, rel=1e-9)


def test_the_noise_scale_in_its_limits() -> None:
    assert noise_scale(variance=0.0, sqnorm=0.0) == 0.0
    assert noise_scale(variance=-1.0, sqnorm=-1.0) == 0.0
    assert noise_scale(variance=1.0, sqnorm=0.0) == math.inf


@given(blocks=st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=8))
def test_moments_add_over_blocks_of_parameters(blocks: list[tuple[float, float]]) -> None:
    parts = [GradientMoments(batch_size=8, parts=2, batch_sqnorm=b, variance=v) for b, v in blocks]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    assert whole.variance == pytest.approx(sum(v for _, v in blocks))
    assert whole.sqnorm == pytest.approx(sum(p.sqnorm for p in parts), rel=1e-6, abs=1e-6)
    assert (whole.batch_size, whole.parts, whole.source) == (8, 2, "micro-batches")


@pytest.mark.parametrize("other", [{"batch_size": 9}, {"parts": 3}, {"source": "ranks"}])
def test_moments_of_different_steps_do_not_add(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="same training step"):
        M + replace(M, **other)


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        M.variance = 1.0  # type: ignore[misc]


def test_the_scale_is_that_of_the_gradient_in_hand() -> None:
    assert see(batch_size=96).scale == 1.5
    assert see(batch_size=16).scale == 0.25


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"samples": 0},
        {"samples": -1},
        {"base_steps": math.inf},
        {"base_steps": math.nan},
        {"samples": 1, "steps": 1},
    ],
)
def test_a_budget_is_one_positive_amount(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Budget\(samples=5_000_000\)"):
        Budget(**bad)


@pytest.mark.parametrize(
    ("budget", "unit", "used"),
    [
        (Budget(base_steps=24.0), "base_steps", 0.25),
        (Budget(samples=1200), "samples", 0.25),
        (Budget(steps=12), "steps", 0.25),
    ],
)
def test_a_budget_reads_its_own_clock(budget: Budget, unit: str, used: float) -> None:
    assert budget.unit == unit
    assert budget.used(step=3, samples=300, base_steps=6.0) == used
    assert see(budget=budget).progress == used
    assert not budget.over(step=3, samples=300, base_steps=6.0)
    assert budget.over(step=12, samples=1200, base_steps=24.0)


@given(amount=st.integers(1, 10**9), samples=st.integers(0, 10**10))
def test_progress_stays_between_zero_and_one(amount: int, samples: int) -> None:
    progress = see(samples=samples, budget=Budget(samples=amount)).progress
    assert 0.0 <= progress <= 1.0
    assert (progress == 1.0) == (samples >= amount)


def test_progress_of_another_budget_goes_before_the_runs_own() -> None:
    seen = see(budget=Budget(samples=1200))
    assert seen.progress_of(Budget(steps=6)) == 0.5
    assert seen.progress_of(None) == 0.25


def test_a_run_without_a_length_has_no_progress_and_says_how_to_give_one() -> None:
    with pytest.raises(ValueError, match=r"control\.steps\(samples="):
        _ = see().progress


@pytest.mark.parametrize("bad", [{"samples": 5e6}, {"steps": 500.0}, {"samples": 0.5}])
def test_a_budget_that_no_record_could_hold_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        Budget(**bad)
