"""Growing batches end at a noise scale that is known, and follow one that moves.

`benchmarks/growth_stationary.py` and `benchmarks/growth_moving.py` have more seeds and problems.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import largebatch as lb
from _known_noise import KnownNoise, equal_parts, micro_batches, simulate, steady
from _real_noise import RealNoise, grown_batches
from growth_moving import MOTIONS, followed, within
from growth_stationary import EIGHT_AND_TWO, PROBLEMS, RULES, ends_of, ends_of_runs

SEEDS = 40
SHORT = [
    replace(problem, steps=500)
    for problem in PROBLEMS
    if problem.directions in (14, 20, 100) and problem.noise_scale <= 1000
]


def test_adasgd_ends_at_a_noise_scale_that_does_not_move() -> None:
    final = []
    for problem in SHORT:
        for parts in EIGHT_AND_TWO.values():
            ends = ends_of(RULES["adasgd"], problem, parts, seeds=SEEDS)
            assert ends.above(2.0) <= 0.05, problem  # at most 2 runs of 40
            assert ends.above(4.0) == 0.0, problem
            assert 0.7 <= np.median(ends.final) <= 1.3, problem
            assert ends.median_half <= 1.5 * problem.half, problem
            final.append(ends.final)
    assert np.mean(np.concatenate(final) > 2.0) <= 0.02


@pytest.mark.parametrize("directions", [20, 100])
def test_a_batch_within_the_interval_of_the_noise_scale_rests(directions: int) -> None:
    """30 tests are made in the last 300 steps; a batch at the estimate moves at each of them."""
    noise = KnownNoise(variance=1000.0, directions=directions)
    for seed in range(10):
        run = simulate(
            RULES["adasgd"],
            noise,
            first=16,
            sqnorms=steady(500),
            parts=equal_parts(2),
            seed=(seed,),
        )
        assert np.count_nonzero(np.diff(run.batch_sizes[200:])) <= 8, seed


@pytest.mark.parametrize("name", ["adadam", "adaptive_growth"])
def test_other_growing_methods_do_not_pass_twice_the_noise_scale(name: str) -> None:
    final = []
    for problem in SHORT[:3]:
        ends = ends_of(RULES[name], problem, equal_parts(2), seeds=SEEDS)
        assert ends.above(4.0) == 0.0, problem
        final.append(ends.final)
    assert np.mean(np.concatenate(final) > 2.0) <= 0.025  # 3 runs of 120


def test_a_training_run_ends_at_its_noise_scale() -> None:
    runs = [grown_batches(RealNoise(seed=seed), micro_batch=512) for seed in range(8)]
    ends = ends_of_runs(runs, noise_scale=1000.0)
    assert ends.above(2.0) == 0.0
    assert 0.7 <= np.median(ends.final) <= 1.3
    assert ends.median_half <= 1.5 * 41


@pytest.mark.parametrize("name", list(MOTIONS))
def test_the_batch_follows_a_noise_scale_that_moves_tenfold(name: str) -> None:
    """In 90 % of the steps of many runs; 32 runs have a standard error of about 0.8 %."""
    rule, all_fractions = lb.methods.adasgd(), []
    for directions in (20, 100):
        for parts in (micro_batches(64), equal_parts(2)):
            fractions, _ = followed(rule, MOTIONS[name], parts, directions=directions, seeds=8)
            assert fractions.mean() >= 0.85, directions
            all_fractions.append(fractions)
    assert np.mean(all_fractions) >= 0.89


def test_the_fraction_within_the_band_counts_from_half_the_noise_scale() -> None:
    scales = np.array([100.0, 100.0, 100.0, 40.0, 200.0, 200.0])
    assert within(np.array([16.0, 49.0, 50.0, 80.0, 81.0, 99.0]), scales) == 0.5
    assert within(np.array([16.0] * 6), scales + 1000.0) == 0.0
