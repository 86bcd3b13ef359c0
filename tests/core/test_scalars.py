"""Test that a step's numbers are complete and finite."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.moving_moments import MovingMoments
from largebatch.core.scalars import SCALARS, averaged, noise_scale_of, scalars_of

MOMENTS = GradientMoments(batch_size=128, parts=4, batch_sqnorm=3.0, variance=128.0)
SEEN = Measurement(
    step=4,
    samples=512,
    base_steps=6.0,
    batch_size=128,
    base_batch_size=64,
    base_lr=0.1,
    loss=0.5,
    moments=MOMENTS,
    skipped=2,
)
DECISION = Decision(next_batch_size=256, base_steps=1.5, lr_multiplier=0.5)


def scalars(seen: Measurement = SEEN) -> dict[str, float]:
    return scalars_of(seen, DECISION, moments=averaged(MovingMoments(), seen))


def test_a_whole_step_has_every_number() -> None:
    assert scalars() == {
        "loss": 0.5,
        "lr": 0.05,
        "lr_multiplier": 0.5,
        "batch_size": 128,
        "base_steps": 7.5,
        "gain": 1.5,
        "noise_scale": 64.0,
        "skipped": 2,
    }
    assert tuple(scalars()) == SCALARS


def test_a_steps_scalars_leave_out_the_statistics_that_it_lacks() -> None:
    bare = scalars(replace(SEEN, loss=None, moments=None))
    assert set(SCALARS) - set(bare) == {"loss", "noise_scale"}


def test_a_step_that_did_not_measure_does_not_repeat_the_noise_of_the_last() -> None:
    known = averaged(MovingMoments(), SEEN)
    assert "noise_scale" not in scalars_of(replace(SEEN, moments=None), DECISION, moments=known)


def test_a_lost_step_has_its_batch_and_clocks_and_is_counted() -> None:
    lost = replace(SEEN, finite=False, loss=math.nan)
    assert scalars(lost) == {"batch_size": 128, "base_steps": 7.5, "skipped": 3}


def test_a_gradient_lost_in_its_noise_has_no_noise_scale() -> None:
    lost = replace(MOMENTS, batch_sqnorm=0.5)
    assert lost.sqnorm < 0.0
    assert "noise_scale" not in scalars(replace(SEEN, moments=lost))
    assert noise_scale_of(MovingMoments()) is None


def test_the_noise_scale_is_the_ratio_of_averages_not_their_average() -> None:
    """A step of two base batches keeps 0.98 of the past, in units of the variance before it."""
    other = replace(MOMENTS, batch_sqnorm=9.0, variance=256.0)
    later = replace(SEEN, step=5, samples=640, moments=other)
    moments = averaged(averaged(MovingMoments(), SEEN), later)
    keep = 1.0 - 2 / 100
    variance = (keep * 128.0 + 256.0) / (keep + 1.0)
    sqnorm = (keep * 2.0 + 7.0) / (keep + 1.0)
    assert noise_scale_of(moments) == pytest.approx(variance / sqnorm)


def test_a_step_that_lies_before_the_averages_begins_them_anew() -> None:
    """A second run can use the same loggers."""
    known = averaged(averaged(MovingMoments(), SEEN), replace(SEEN, samples=640))
    assert known.average.count == 2
    again = replace(SEEN, step=0, samples=0)
    assert averaged(known, again) == averaged(MovingMoments(), again)


def test_moments_of_the_preconditioned_gradient_do_not_enter_the_bare_gradients_averages() -> None:
    other = replace(SEEN, moments=None, preconditioned_moments=MOMENTS)
    for past in (MovingMoments(), averaged(MovingMoments(), SEEN)):
        assert averaged(past, other) == past


def test_a_lost_step_does_not_enter_the_averages() -> None:
    known = averaged(MovingMoments(), SEEN)
    assert averaged(known, replace(SEEN, finite=False)) == known


@given(
    loss=st.none() | st.floats(),
    variance=st.floats(0.0, 1e30),
    sqnorm=st.floats(-1e30, 1e30),
    finite=st.booleans(),
)
def test_every_number_is_finite(
    loss: float | None, variance: float, sqnorm: float, finite: bool
) -> None:
    moments = replace(MOMENTS, variance=variance, batch_sqnorm=sqnorm)
    values = scalars(replace(SEEN, loss=loss, moments=moments, finite=finite))
    assert all(math.isfinite(value) for value in values.values())
    assert {"batch_size", "base_steps", "skipped"} <= set(values) <= set(SCALARS)
