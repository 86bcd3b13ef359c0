"""Test that SGD's closed form equals the recurrence for any number of steps and learning rate."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quadratic_twins import by_chance, by_steps, losses_of

from largebatch.workbench.quadratic import SGD, Phase, Spectrum, forecast
from largebatch.workbench.quadratic.sgd import decay

SPECTRUM = Spectrum(
    curvature=[1.0, 0.3, 0.01, 1e-6],
    noise=[2.0, 0.5, 0.1, 1.0],
    second_moment=[1.0, 0.0, 4.0, 9.0],
    weight=[1.0, 3.0, 10.0, 2.0],
    floor=0.25,
)
phases = st.lists(
    st.builds(
        Phase,
        batch_size=st.sampled_from([0.5, 1.0, 64.0, math.inf]),
        lr=st.floats(0.0, 2.1),
        steps=st.integers(1, 40),
    ),
    min_size=1,
    max_size=4,
)


@given(phases)
def test_the_closed_form_is_the_recurrence_step_by_step(schedule: list[Phase]) -> None:
    expected = losses_of(SPECTRUM, by_steps(SPECTRUM, schedule))
    assert forecast(SPECTRUM, schedule).loss == pytest.approx(expected, rel=1e-9)


@given(st.fractions(0, 3), st.integers(1, 30))
def test_powers_and_sums_agree_with_exact_fractions(h: Fraction, steps: int) -> None:
    h = Fraction(float(h))
    a = (1 - h) ** 2
    left, total = decay(np.array([float(h)]), steps)
    assert left[0] == pytest.approx(float(a**steps), rel=1e-11, abs=1e-300)
    assert total[0] == pytest.approx(float(sum(a**j for j in range(steps))), rel=1e-11)


def test_a_phase_cut_in_two_anywhere_is_the_same_phase() -> None:
    whole = forecast(SPECTRUM, [Phase(batch_size=8, lr=0.4, steps=20)])
    parts = [Phase(batch_size=8, lr=0.4, steps=steps) for steps in (7.25, 12.75)]
    assert forecast(SPECTRUM, parts).loss[-1] == pytest.approx(whole.loss[-1], rel=1e-13)


def test_runs_drawn_at_random_have_the_expected_loss() -> None:
    schedule = [Phase(batch_size=4 * 2**m, lr=0.5 / 1.2**m, steps=25) for m in range(4)]
    spectrum = Spectrum.power_law(20, curvature_exponent=1.0, start_exponent=0.0, noise=4.0)
    measured = by_chance(spectrum, schedule, runs=4000)
    assert forecast(spectrum, schedule).loss == pytest.approx(measured, rel=0.02)


def test_without_noise_the_forecast_of_sgd_is_gradient_descent() -> None:
    theta = np.sqrt(SPECTRUM.second_moment)
    for _ in range(30):
        theta = theta - 0.7 * SPECTRUM.curvature * theta
    expected = losses_of(SPECTRUM, theta[None] ** 2)
    found = forecast(SPECTRUM, [Phase(batch_size=math.inf, lr=0.7, steps=30)])
    assert found.loss == pytest.approx(expected, rel=1e-12)


def test_after_very_many_steps_the_loss_is_the_stationary_one() -> None:
    lr, b = 0.3, 16.0
    h = lr * SPECTRUM.curvature
    stationary = lr * SPECTRUM.noise / (b * SPECTRUM.curvature * (2.0 - h))
    found = forecast(SPECTRUM, [Phase(batch_size=b, lr=lr, steps=1e12)])
    assert found.loss[0] == pytest.approx(losses_of(SPECTRUM, stationary[None])[0], rel=1e-12)
    assert found.samples == (1.6e13,)


def test_a_flat_direction_keeps_its_digits_over_many_steps() -> None:
    """For lr lambda = 1e-14, the expression 1 - h would keep only two digits."""
    flat = Spectrum(curvature=[1e-13], noise=[1.0], second_moment=[1.0])
    found = SGD().advance(flat, SGD().start(flat), Phase(batch_size=1.0, lr=0.1, steps=1e12))
    assert found[0, 0] == pytest.approx(math.exp(-0.02) + 0.01 * -math.expm1(-0.02) / 2e-14)


def test_a_rate_past_the_limit_is_infinite_in_the_end_and_never_nan() -> None:
    over = 1.01 * SGD().max_lr(SPECTRUM)
    schedule = [
        Phase(batch_size=8, lr=over, steps=100),
        Phase(batch_size=8, lr=over, steps=1e6),
        Phase(batch_size=math.inf, lr=0.1, steps=1e12),
    ]
    found = forecast(SPECTRUM, schedule)
    assert 0.25 < found.loss[0] < math.inf
    assert found.loss[1:] == found.sqnorm[1:] == (math.inf, math.inf)
    assert found.noise_scale[1:] == (0.0, 0.0)
    assert found.diverged


def test_more_samples_than_a_machine_integer_holds_are_counted() -> None:
    found = forecast(SPECTRUM, [Phase(batch_size=2**40, lr=0.1, steps=2**40)] * 2)
    assert found.samples == (2.0**80, 2.0**81)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"lr": -0.1}, {"steps": 0}, {"lr": math.nan}])
def test_a_phase_outside_its_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Example: Phase"):
        Phase(**{"batch_size": 8, "lr": 0.1, "steps": 10, **wrong})


def test_a_schedule_without_a_phase_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one phase"):
        forecast(SPECTRUM, [])
