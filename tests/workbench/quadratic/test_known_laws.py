"""Test laws of batch size and learning rate on the noisy quadratic, and where they do not hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from largebatch.theory import bound_exponent
from largebatch.workbench.quadratic import (
    Dynamics,
    Normalised,
    Phase,
    Preconditioned,
    Spectrum,
    forecast,
)

INVERSE = Spectrum.power_law(500, curvature_exponent=1.0, start_exponent=0.0)
FALLS_INVERSELY = Spectrum.power_law(10**12, curvature_exponent=1.5, start_exponent=1.0, bins=500)
"""Without noise its loss falls as 1 / sum of rates: the sum of i^-(p + q) exp(-2 i^-p s) goes as
s^-((p + q - 1) / p), and q is 1."""


def steps_needed(spectrum: Spectrum, *, batch_size: float, lr: float, target: float) -> float:
    """Return the number of steps to a loss, by bisection; `inf` if the loss is never reached."""

    def loss(steps: float) -> float:
        return forecast(spectrum, [Phase(batch_size=batch_size, lr=lr, steps=steps)]).loss[0]

    low, high = 1.0, 1e9
    if loss(high) > target:
        return math.inf
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if loss(middle) > target else (low, middle)
    return high


@pytest.mark.parametrize(("lr", "apart"), [(0.4, 1e-2), (0.1, 1e-3), (0.025, 1e-4)])
def test_a_rate_over_four_is_a_batch_times_four_up_to_the_rate(lr: float, apart: float) -> None:
    """At equal samples; apart by less and less as the rate falls, and not by nothing."""
    first = Phase(batch_size=8, lr=lr, steps=round(200 / lr))
    steps = round(400 / lr)
    decayed = forecast(INVERSE, [first, Phase(batch_size=8, lr=lr / 4, steps=steps)])
    grown = forecast(INVERSE, [first, Phase(batch_size=32, lr=lr, steps=steps / 4)])
    assert decayed.samples == grown.samples
    assert 0.0 < abs(decayed.loss[-1] / grown.loss[-1] - 1.0) < apart


def test_one_step_at_its_best_rate_lies_on_the_hyperbola_of_steps_and_samples() -> None:
    """The fall of a step is that without noise over 1 + noise scale / b, so that (S / S_min - 1)
    (E / E_min - 1) is 1, with the noise scale that weighs by the curvature."""

    def fall(batch_size: float) -> float:
        lrs = INVERSE.max_lr * np.geomspace(1e-2, 0.9, 1500)
        phases = [Phase(batch_size=batch_size, lr=lr, steps=1) for lr in lrs]
        return INVERSE.loss - min(forecast(INVERSE, [phase]).loss[0] for phase in phases)

    for b in (0.3, 1.0, 4.0):
        slower = fall(math.inf) / fall(b) - 1.0
        assert slower == pytest.approx(INVERSE.curvature_noise_scale / b, rel=1e-3)
        dearer = slower * b / INVERSE.curvature_noise_scale  # (E / E_min - 1) = b / noise scale
        assert dearer == pytest.approx(1.0, rel=1e-3)


def test_whole_runs_at_their_best_constant_rates_lie_below_that_hyperbola() -> None:
    """The product stays the same within a factor of two over 64 batches, at about a quarter: the
    noise scale grows along the run, and one rate is best for all of it."""
    target = 0.1 * INVERSE.loss
    lrs = INVERSE.max_lr * np.geomspace(1e-4, 0.5, 40)

    def fewest(b: float) -> float:
        return min(steps_needed(INVERSE, batch_size=b, lr=lr, target=target) for lr in lrs)

    least_steps, least_samples = fewest(math.inf), 0.0625 * fewest(0.0625)
    for b in (1.0, 4.0, 16.0, 64.0):
        steps = fewest(b)
        product = (steps / least_steps - 1.0) * (b * steps / least_samples - 1.0)
        assert 0.15 < product < 0.4


@pytest.mark.parametrize(
    ("spectrum", "share"), [(FALLS_INVERSELY, 0.475), (INVERSE, None)], ids=["1 / steps", "other"]
)
def test_samples_are_fewest_where_noise_takes_half_of_the_target(
    spectrum: Spectrum, share: float | None
) -> None:
    """At a fixed rate, near the batch 2 floor / target, if the loss without noise falls inversely;
    there is a best batch in any case."""
    lr, target = 0.3, 0.05 * spectrum.loss
    batches = np.geomspace(1.0, 200.0, 60)
    samples = [b * steps_needed(spectrum, batch_size=b, lr=lr, target=target) for b in batches]
    at = int(np.argmin(samples))
    assert 0 < at < len(batches) - 1
    if share is None:
        return
    floor = forecast(spectrum, [Phase(batch_size=1, lr=lr, steps=1e12)]).loss[0]
    assert 0.7 < batches[at] / (2.0 * floor / target) < 1.0
    still = Spectrum(
        curvature=spectrum.curvature,
        noise=spectrum.noise,
        second_moment=0.0 * spectrum.second_moment,
        weight=spectrum.weight,
    )
    best = Phase(batch_size=batches[at], lr=lr, steps=samples[at] / batches[at])
    assert forecast(still, [best]).loss[0] / target == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(("lr", "share"), [(0.3, 0.81), (0.03, 0.81)])
def test_in_one_direction_noise_takes_more_than_half_where_samples_are_fewest(
    lr: float, share: float
) -> None:
    """Without noise the loss falls as exp(-2 lr steps) there, and not as 1 / steps."""
    one = Spectrum(curvature=[1.0], noise=[1.0], second_moment=[1.0])
    target = 0.05 * one.loss
    floor = forecast(one, [Phase(batch_size=1, lr=lr, steps=1e9)]).loss[0]
    batches = floor / target * np.geomspace(1.01, 4.0, 400)
    samples = [b * steps_needed(one, batch_size=b, lr=lr, target=target) for b in batches]
    assert floor / target / batches[int(np.argmin(samples))] == pytest.approx(share, abs=0.03)


def test_past_the_relation_the_rate_meets_its_limit_before_the_exponent_shows() -> None:
    lr, growth = 1e-5, 1.7
    stages = int(math.log(0.5 / lr) / math.log(growth))
    found = forecast(
        FALLS_INVERSELY,
        [Phase(batch_size=4 * 2.0**m, lr=lr * growth**m, steps=64) for m in range(stages)],
    )
    half = stages // 2
    slope = np.polyfit(np.log(found.samples[half:]), np.log(found.loss[half:]), 1)[0]
    expected = bound_exponent(batch_growth=2, lr_growth=growth, steps_growth=1)
    assert expected < 0.24
    assert -slope > 2.0 * expected


@pytest.mark.parametrize(
    ("d", "g", "k"),
    [(2, 2**0.5, 1), (2, 1, 2), (1, 0.5**0.5, 2), (2, 2**0.25, 2**0.5), (2, 1.3, 1), (2, 1, 1)],
)
def test_the_loss_of_growing_stages_falls_with_the_exponent_of_the_bound(
    d: float, g: float, k: float
) -> None:
    lr = 1e-5 if g > 1 else 1e-3
    stages = 60 if g <= 1 else int(min(60, math.log(0.5 / lr) / math.log(g)))
    found = forecast(
        FALLS_INVERSELY,
        [Phase(batch_size=4 * d**m, lr=lr * g**m, steps=64 * k**m) for m in range(stages)],
    )
    half = stages // 2
    slope = np.polyfit(np.log(found.samples[half:]), np.log(found.loss[half:]), 1)[0]
    expected = bound_exponent(batch_growth=d, lr_growth=g, steps_growth=k)
    assert -slope == pytest.approx(expected, abs=0.035)


def traded(share: float, *, dynamics: Dynamics, lr: float) -> tuple[float, float]:
    """(loss, steps) as ratios to a quarter cosine whose rate is cut, where the batch grows by the
    inverse of the cut instead and the rate keeps `share` of it as a power; samples are equal."""
    spectrum = Spectrum.power_law(1000, curvature_exponent=1.0, start_exponent=0.5, noise=100.0)
    cuts = np.cos(np.pi / 2 * (np.arange(40) + 0.5) / 40)
    cosine = [Phase(batch_size=32, lr=lr * cut, steps=500) for cut in cuts]
    grown = [Phase(batch_size=32 / c, lr=lr * c**share, steps=500 * c) for c in cuts]
    one, other = (forecast(spectrum, phases, dynamics=dynamics) for phases in (cosine, grown))
    assert one.samples[-1] == pytest.approx(other.samples[-1])
    return other.loss[-1] / one.loss[-1], other.steps[-1] / one.steps[-1]


@pytest.mark.parametrize("lr", [0.002, 0.01])
def test_seesaw_has_the_loss_of_its_cosine_in_two_over_pi_of_the_steps(lr: float) -> None:
    """The gradient is normalized, and most of the gradient is noise."""
    loss, steps = traded(0.5, dynamics=Normalised(), lr=lr)
    assert loss == pytest.approx(1.0, abs=0.002)
    assert steps == pytest.approx(2.0 / math.pi, rel=0.001)


def test_without_normalising_the_batch_takes_all_of_the_cut_instead_of_its_root() -> None:
    """A scale that does not know the noise keeps the law of SGD: Smith's trade is even, Seesaw's
    is not."""
    assert traded(0.0, dynamics=Preconditioned(), lr=0.05)[0] == pytest.approx(1.0, abs=0.002)
    assert abs(traded(0.5, dynamics=Preconditioned(), lr=0.05)[0] - 1.0) > 0.1
