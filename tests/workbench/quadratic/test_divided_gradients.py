"""Compare the models of divided gradients with the same steps, taken one by one."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from quadratic_twins import by_steps, losses_of

from largebatch.workbench.quadratic import (
    HeavyBall,
    Normalised,
    Phase,
    Preconditioned,
    Spectrum,
    forecast,
)
from largebatch.workbench.quadratic.spectrum import Array

SPECTRUM = Spectrum.power_law(50, curvature_exponent=1.0, start_exponent=0.5, noise=3.0)


def normalised_by_steps(spectrum: Spectrum, phases: list[Phase]) -> Array:
    """Return E theta^2 after each phase, computed with the norm of every single step."""
    e, reached = spectrum.second_moment, []
    for phase in phases:
        for _ in range(round(phase.steps)):
            noise = spectrum.noise / phase.batch_size
            square = float(spectrum.weight @ (spectrum.curvature**2 * e + noise))
            lr = phase.lr / math.sqrt(square)
            e = (1.0 - lr * spectrum.curvature) ** 2 * e + lr**2 * noise
        reached.append(e)
    return np.array(reached)


@pytest.mark.parametrize("lr", [0.003, 0.03, 0.3])
def test_pieces_of_a_normalised_phase_stay_near_its_single_steps(lr: float) -> None:
    schedule = [Phase(batch_size=8 * 4**m, lr=lr, steps=400) for m in range(4)]
    expected = losses_of(SPECTRUM, normalised_by_steps(SPECTRUM, schedule))
    found = forecast(SPECTRUM, schedule, dynamics=Normalised())
    assert found.loss == pytest.approx(expected, rel=2e-3)


def test_a_finer_tolerance_comes_nearer() -> None:
    schedule = [Phase(batch_size=64, lr=0.02, steps=2000)]
    exact = losses_of(SPECTRUM, normalised_by_steps(SPECTRUM, schedule))[0]
    errors = [
        abs(forecast(SPECTRUM, schedule, dynamics=Normalised(tolerance=t)).loss[0] / exact - 1.0)
        for t in (1.0, 0.1, 0.01)
    ]
    assert all(fine < coarse for coarse, fine in pairwise(errors))


def test_where_noise_dominates_a_normalised_rate_acts_as_its_root_of_the_batch() -> None:
    noisy = Spectrum.power_law(50, curvature_exponent=1.0, start_exponent=0.5, noise=1e8)
    one = forecast(noisy, [Phase(batch_size=1, lr=0.01, steps=100)], dynamics=Normalised())
    lr = 0.01 / math.sqrt(noisy.variance)
    assert one.loss == pytest.approx(forecast(noisy, [Phase(batch_size=1, lr=lr, steps=100)]).loss)


def test_a_normalised_gradient_at_the_minimum_stays_there() -> None:
    rest = Spectrum(curvature=[1.0], noise=[0.0], second_moment=[0.0], floor=2.0)
    found = forecast(rest, [Phase(batch_size=8, lr=0.1, steps=100)], dynamics=Normalised())
    assert found.loss == (2.0,)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_preconditioned_run_has_a_rate_of_its_own_in_each_direction(momentum: float) -> None:
    """In every direction, the model is the recurrence with the learning rate lr / d."""
    dynamics = Preconditioned(dynamics=HeavyBall(momentum=momentum), exponent=0.5)
    found = dynamics.advance(
        SPECTRUM, dynamics.start(SPECTRUM), Phase(batch_size=8, lr=0.2, steps=30)
    )
    for i in (0, 7, 49):
        one = Spectrum(
            curvature=SPECTRUM.curvature[[i]],
            noise=SPECTRUM.noise[[i]],
            second_moment=SPECTRUM.second_moment[[i]],
        )
        lr = 0.2 / math.sqrt(one.curvature[0])
        expected = by_steps(one, [Phase(batch_size=8, lr=lr, steps=30)], momentum=momentum)
        assert dynamics.second_moment(found)[i] == pytest.approx(expected[0, 0])


def test_exponent_zero_changes_nothing() -> None:
    schedule = [Phase(batch_size=8, lr=0.2, steps=30)]
    same = forecast(SPECTRUM, schedule, dynamics=Preconditioned(exponent=0.0))
    assert same.loss == forecast(SPECTRUM, schedule).loss


def test_divided_gradients_refuse_a_tolerance_or_exponent_out_of_range() -> None:
    with pytest.raises(ValueError, match="tolerance must be finite and above 0"):
        Normalised(tolerance=0.0)
    with pytest.raises(ValueError, match="exponent must be a finite number"):
        Preconditioned(exponent=math.inf)
