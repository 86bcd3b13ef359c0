"""The draws of the benchmarks with known noise, compared with gradients that are drawn in full."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import gain_doors
import growth_moving
import growth_stationary
import noise_coverage
from _known_noise import KnownNoise, equal_parts, falling, jumping, micro_batches, rising, simulate
from _real_noise import RealNoise
from gain_doors import gain_error, gain_of
from largebatch.rules import AdaScale


def drawn_in_full(rng, *, variance, directions, batch_size, parts, sqnorm, steps):
    """(variance, |g_B|^2) of each step from the gradients of its parts, [T, 2]."""
    deviation = math.sqrt(variance / directions * parts / batch_size)
    gradients = deviation * rng.standard_normal((steps, parts, directions))
    gradients[..., 0] += math.sqrt(sqnorm)
    mean = gradients.mean(axis=1, keepdims=True)
    of_part = ((gradients - mean) ** 2).sum(axis=(1, 2)) / (parts - 1)
    return np.stack([of_part * batch_size / parts, (mean[:, 0] ** 2).sum(axis=1)], axis=1)


@pytest.mark.parametrize(("parts", "directions"), [(2, 3), (4, 20)])
def test_drawn_moments_have_the_distribution_of_drawn_gradients(parts, directions):
    facts = {"batch_size": 32, "parts": parts, "sqnorm": 2.0}
    rng, steps = np.random.default_rng(0), 20_000
    noise = KnownNoise(variance=300.0, directions=directions)
    drawn = [noise.draw(rng, **facts) for _ in range(steps)]
    found = np.array([(m.variance, m.batch_sqnorm) for m in drawn])
    full = drawn_in_full(rng, variance=300.0, directions=directions, steps=steps, **facts)
    assert found.mean(axis=0) == pytest.approx([300.0, 2.0 + 300.0 / 32], rel=0.03)
    for moment in (1, 2, 3):
        expected = (full**moment).mean(axis=0)
        spread = np.sqrt((full**moment).var(axis=0) + (found**moment).var(axis=0))
        difference = (found**moment).mean(axis=0) - expected
        assert np.all(np.abs(difference) < 4.0 * spread / math.sqrt(steps))
    correlation = np.corrcoef(found.T)[0, 1]
    assert abs(correlation) < 4.0 / math.sqrt(steps)


def test_squared_norms_move_tenfold():
    for moved, end in ((falling(1500), 0.1), (rising(1500), 10.0), (jumping(1500), 10.0)):
        assert moved[0] == 1.0
        assert moved[-1] == pytest.approx(end)
    assert np.mean(np.diff(np.log(rising(1500))) > 0.0) == pytest.approx(0.1, abs=0.01)
    assert np.sum(np.diff(jumping(1500)) > 0.0) == 1


def test_a_batch_has_the_parts_that_micro_batches_make():
    assert [micro_batches(64)(size) for size in (16, 64, 65, 200)] == [2, 2, 2, 4]
    assert [equal_parts(8)(size) for size in (4, 16)] == [4, 8]


def test_a_simulation_repeats_itself_with_the_same_seed_alone():
    noise = KnownNoise(variance=800.0, directions=10)

    def gains(seed):
        run = simulate(
            AdaScale(),
            noise,
            first=128,
            base=16,
            sqnorms=np.ones(20),
            parts=equal_parts(4),
            seed=(seed,),
        )
        return run.gains.tolist()

    assert gains(0) == gains(0)
    assert gains(0) != gains(1)


def test_the_error_of_a_gain_is_that_of_means_of_drawn_moments():
    rng, measured = np.random.default_rng(0), 50
    noise = KnownNoise(variance=1000.0, directions=50)
    gains = []
    for _ in range(1000):
        drawn = [noise.draw(rng, batch_size=512, parts=4) for _ in range(measured)]
        variance = np.mean([m.variance for m in drawn])
        sqnorm = np.mean([m.sqnorm for m in drawn])
        gains.append(gain_of(variance, sqnorm, scale=8, base=64))
    expected = gain_error(
        variance=1000.0, parts=4, measured=measured, scale=8, base=64, directions=50
    )
    assert np.std(gains) == pytest.approx(expected, rel=0.1)  # 2 % is one standard error


def test_real_data_have_the_noise_that_they_are_said_to_have():
    x = RealNoise(seed=0, samples=20_000).data().double()
    assert x.mean(0).square().sum().item() == pytest.approx(1.0, abs=1e-4)
    assert x.var(0).sum().item() == pytest.approx(1000.0, rel=0.01)


def test_the_programs_print_their_tables(capsys, monkeypatch):
    problem = growth_stationary.Problem(first=16, noise_scale=64, directions=9, half=9, steps=30)
    monkeypatch.setattr(growth_stationary, "PROBLEMS", (problem,))
    monkeypatch.setattr(growth_moving, "STEPS", 30)
    monkeypatch.setattr(noise_coverage, "SPECTRA", {"one": noise_coverage.equal(1)})
    growth_stationary.print_rule("CABS", seeds=2)
    growth_moving.print_rule("adasgd", seeds=1)
    gain_doors.print_steady(seeds=1, steps=8)
    gain_doors.print_clock(seeds=1, steps=100)
    monkeypatch.setattr("sys.argv", ["noise_coverage.py", "--runs", "2"])
    noise_coverage.main()
    shown = capsys.readouterr().out
    assert "all 4 runs: >2n" in shown
    assert len(re.findall("10 % quantile", shown)) == 24
    assert "18 cells: coverage from" in shown
