"""Test that the closed forms of momentum and averages equal the recurrence at any learning rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from quadratic_twins import by_chance, by_steps, losses_of

from largebatch.workbench.quadratic import (
    SGD,
    AveragedWeights,
    HeavyBall,
    Phase,
    Spectrum,
    forecast,
)

SPECTRUM = Spectrum(
    curvature=[1.0, 0.3, 0.01, 1e-6],
    noise=[2.0, 0.5, 0.1, 1.0],
    second_moment=[1.0, 0.0, 4.0, 9.0],
    weight=[1.0, 3.0, 10.0, 2.0],
)
schedules = st.lists(
    st.builds(
        Phase,
        batch_size=st.sampled_from([1.0, 64.0, math.inf]),
        lr=st.floats(0.0, 4.2),
        steps=st.integers(1, 40),
    ),
    min_size=1,
    max_size=3,
)
EDGES = [1.0, 2.0, 0.01, (1 - 0.9**0.5) ** 2, (1 + 0.9**0.5) ** 2, 3.8]
"""List learning rates at the stability limit, or with a root that is 0, 1 or double."""


def edges(momentum: float) -> list[Phase]:
    return [Phase(batch_size=4, lr=lr, steps=17) for lr in EDGES if lr <= 2.0 * (1.0 + momentum)]


@given(schedules, st.sampled_from([0.0, 0.5, 0.9, 0.99]))
@example(edges(0.9), 0.9)
@example(edges(0.0), 0.0)
def test_momentum_is_the_recurrence_step_by_step(schedule: list[Phase], momentum: float) -> None:
    expected = losses_of(SPECTRUM, by_steps(SPECTRUM, schedule, momentum=momentum))
    found = forecast(SPECTRUM, schedule, dynamics=HeavyBall(momentum=momentum))
    assert found.loss == pytest.approx(expected, rel=1e-5)


@given(schedules, st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.5, 0.99]))
@example(edges(0.9), 0.9, 0.9)
@example(edges(0.0), 0.0, 0.5)
def test_an_average_is_the_recurrence_step_by_step(
    schedule: list[Phase], momentum: float, decay: float
) -> None:
    expected = losses_of(SPECTRUM, by_steps(SPECTRUM, schedule, momentum=momentum, decay=decay))
    average = AveragedWeights(dynamics=HeavyBall(momentum=momentum), decay=decay)
    assert forecast(SPECTRUM, schedule, dynamics=average).loss == pytest.approx(expected, rel=1e-5)


def test_without_momentum_or_decay_both_are_sgd() -> None:
    schedule = [Phase(batch_size=4 * 2**m, lr=0.5, steps=10**m) for m in range(6)]
    plain = forecast(SPECTRUM, schedule)
    for same in (HeavyBall(momentum=0.0), AveragedWeights(decay=0.0)):
        assert forecast(SPECTRUM, schedule, dynamics=same).loss == pytest.approx(plain.loss)


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 0.0), (0.0, 0.95), (0.8, 0.95)])
def test_runs_drawn_at_random_have_the_expected_loss(momentum: float, decay: float) -> None:
    schedule = [Phase(batch_size=4 * 2**m, lr=0.1, steps=25) for m in range(4)]
    spectrum = Spectrum.power_law(20, curvature_exponent=1.0, start_exponent=0.0, noise=4.0)
    dynamics = AveragedWeights(dynamics=HeavyBall(momentum=momentum), decay=decay)
    measured = by_chance(spectrum, schedule, runs=4000, momentum=momentum, decay=decay)
    assert forecast(spectrum, schedule, dynamics=dynamics).loss == pytest.approx(measured, rel=0.02)


def test_momentum_comes_to_rest_at_its_stationary_value() -> None:
    lr, m, b = 0.3, 0.9, 16.0
    h = lr * SPECTRUM.curvature
    rest = lr * SPECTRUM.noise / (b * SPECTRUM.curvature) * (1 + m) / (1 - m) / (2 * (1 + m) - h)
    schedule = [Phase(batch_size=b, lr=lr, steps=1e12)]
    found = forecast(SPECTRUM, schedule, dynamics=HeavyBall(momentum=m))
    assert found.loss[0] == pytest.approx(losses_of(SPECTRUM, rest[None])[0], rel=1e-9)


def test_an_average_at_rest_is_below_its_iterates() -> None:
    """By the variance of an average of a series whose neighbours correlate by 1 - lr lambda."""
    steep = Spectrum(curvature=[0.2], noise=[2.0], second_moment=[1.0])
    schedule = [Phase(batch_size=8, lr=0.5, steps=1e9)]
    average = forecast(steep, schedule, dynamics=AveragedWeights(decay=0.999))
    share = average.loss[0] / forecast(steep, schedule).loss[0]
    decay, alike = 0.999, 1.0 - 0.5 * 0.2
    expected = (1 - decay) / (1 + decay) * (1 + decay * alike) / (1 - decay * alike)
    assert share == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "dynamics",
    [HeavyBall(momentum=0.9), AveragedWeights(dynamics=HeavyBall(momentum=0.9), decay=0.9)],
)
def test_a_rate_below_the_limit_stays_finite_and_one_past_it_does_not(
    dynamics: HeavyBall | AveragedWeights,
) -> None:
    limit = dynamics.max_lr(SPECTRUM)
    assert limit == pytest.approx(3.8)
    steps = 1e6
    below = forecast(
        SPECTRUM, [Phase(batch_size=8, lr=0.999 * limit, steps=steps)], dynamics=dynamics
    )
    assert np.isfinite(below.loss).all()
    over = [
        Phase(batch_size=8, lr=1.001 * limit, steps=steps),
        Phase(batch_size=math.inf, lr=0.1, steps=1e12),
    ]
    assert forecast(SPECTRUM, over, dynamics=dynamics).loss == (math.inf, math.inf)


def test_parts_of_a_step_are_refused_by_all_but_sgd() -> None:
    schedule = [Phase(batch_size=8, lr=0.1, steps=2.5)]
    assert np.isfinite(forecast(SPECTRUM, schedule, dynamics=SGD()).loss).all()
    for dynamics in (HeavyBall(momentum=0.9), AveragedWeights(decay=0.9)):
        with pytest.raises(ValueError, match="needs a whole number of steps"):
            forecast(SPECTRUM, schedule, dynamics=dynamics)


@pytest.mark.parametrize("outside", [-0.1, 1.0, math.nan])
def test_momentum_and_decay_outside_their_range_are_refused(outside: float) -> None:
    with pytest.raises(ValueError, match="momentum must be in"):
        HeavyBall(momentum=outside)
    with pytest.raises(ValueError, match="decay must be in"):
        AveragedWeights(decay=outside)
