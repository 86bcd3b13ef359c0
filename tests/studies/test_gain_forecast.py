"""The forecast of a probe: what the noise of a whole run says about larger batches."""

from __future__ import annotations

import pytest

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NoiseEstimate
from largebatch.core.formulas import gain_from_noise_scale
from largebatch.studies.gain_forecast import forecast_gain, mean_gain, noise_scale_at, signal_share
from largebatch.studies.noise_of_run import weighted_mean, weights


def test_the_forecast_is_the_integral_of_one_over_the_gain() -> None:
    """By hand, base batch 16: 300 steps at n = 16 (S = 4: r = 8 / 5) and 100 at n = 112
    (r = 32 / 11) take 300 * 5 / 8 + 100 * 11 / 32 = 221.875 steps."""
    shares = [signal_share(noise_scale=n, base_batch_size=16) for n in (16.0, 112.0)]
    mean = 0.75 * shares[0] + 0.25 * shares[1]
    scale = noise_scale_at(signal=mean, base_batch_size=16)
    noise = NoiseEstimate(
        noise_scale=scale, low=scale, high=scale, steps=400, variance=1.0, sqnorm=1.0
    )
    found = forecast_gain(noise, base_batch_size=16, run_steps=400, scale=4)
    assert found.steps.value == pytest.approx(221.875)
    assert found.samples.value == pytest.approx(221.875 * 64)
    assert found.mean_gain.value == pytest.approx(400 / 221.875)


@pytest.mark.parametrize("scale", [1, 2, 8, 128])
@pytest.mark.parametrize("n", [0.0, 3.0, 500.0, float("inf")])
def test_the_gain_from_the_share_of_signal_is_the_gain_from_the_noise_scale(
    scale: int, n: float
) -> None:
    share = signal_share(noise_scale=n, base_batch_size=16)
    expected = gain_from_noise_scale(noise_scale=n, base_batch_size=16, scale=scale)
    assert mean_gain(signal=share, scale=scale) == pytest.approx(expected)


def test_steps_that_a_probe_did_not_run_weigh_as_its_last_quarter() -> None:
    ends = [(10 * i, 10 * i + 10) for i in range(8)]
    found = weights(ends, run_steps=200)
    assert found[:6] == [0.05] * 6
    assert found[6:] == pytest.approx([0.35, 0.35])
    assert sum(weights([(0, 20)], run_steps=77)) == pytest.approx(1.0)


def test_the_mean_of_equal_pieces_is_known_better_than_one() -> None:
    piece = Range(value=0.4, low=0.2, high=0.8)
    found = weighted_mean([piece] * 4, [0.25] * 4)
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.3, 0.6))
