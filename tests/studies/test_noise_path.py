"""The noise along a probe, between its steps and beyond them."""

from __future__ import annotations

import numpy as np
import pytest

from largebatch.analysis.efficiency import Range
from largebatch.studies.noise_of_run import weighted_mean, weights
from largebatch.studies.noise_path import NoisePath, block_lengths, errors_of, variations

PAIRS = np.random.default_rng(0).normal(size=(40, 2))


def test_a_mean_over_the_path_is_that_of_fine_grains() -> None:
    path = NoisePath.of(PAIRS)
    fine = np.concatenate([np.repeat(PAIRS, 1000, axis=0), np.tile(PAIRS[30:].mean(0), (9000, 1))])
    for start, stop in ((0.0, 1.0), (3.25, 3.5), (1.5, 17.125), (38.5, 44.25), (41.0, 45.0)):
        expected = fine[int(1000 * start) : int(1000 * stop)].mean(axis=0)
        assert path.mean(start, stop) == pytest.approx(tuple(expected), abs=1e-9)


def test_a_mean_around_a_step_has_it_in_its_middle() -> None:
    line = NoisePath.of([(1.0, float(t)) for t in range(40)])
    assert line.around(0.0, 7.0) == pytest.approx((1.0, 0.0))
    assert line.around(2.0, 7.0) == pytest.approx(line.around(2.0, 5.0)) == (1.0, 2.0)
    assert line.around(11.0, 7.0) == pytest.approx((1.0, 11.0))
    assert line.around(11.5, 7.0) == pytest.approx((1.0, 11.5))


def test_blocks_fill_the_series_and_grow_with_it() -> None:
    for steps in (3, 16, 100, 401, 5000):
        lengths = block_lengths(steps)
        assert sum(lengths) == steps
        starts = np.cumsum([0, *lengths[:-1]])
        assert all(
            length <= max(min(start // 4, steps // 20), 1)
            for start, length in zip(starts, lengths, strict=True)
        )


def test_the_errors_of_a_block_have_together_the_size_of_independent_noise() -> None:
    """The naive size: l steps of variance 1 have a sum of variance l."""
    generator, lengths = np.random.default_rng(1), block_lengths(200)
    starts = np.cumsum([0, *lengths[:-1]])
    sums = [
        np.add.reduceat(errors_of(generator.normal(size=(200, 1)), lengths)[:, 0], starts)
        for _ in range(3000)
    ]
    assert np.square(sums).mean(axis=0) / lengths == pytest.approx(np.ones(len(lengths)), rel=0.13)


def test_errors_of_a_steep_fall_are_small_beside_it() -> None:
    fall = 100.0 * np.exp(-np.arange(400) / 60.0)[:, np.newaxis]
    errors = np.abs(errors_of(fall, block_lengths(400))[:, 0])
    assert (errors[1:-40] < 0.15 * fall[1:-40, 0]).all()


def test_variations_keep_the_path_and_the_size_of_its_errors_and_their_blocks() -> None:
    pairs = np.random.default_rng(2).normal(size=(320, 2))
    drawn = np.array([np.diff(path.sqnorm_sums) for path in variations(pairs, count=400, seed=0)])
    errors = errors_of(pairs, block_lengths(320))[:, 1]
    assert drawn.mean(axis=0) == pytest.approx(pairs[:, 1], abs=0.8)
    assert drawn.std(axis=0) == pytest.approx(np.abs(errors), rel=0.15)
    moved = (drawn - pairs[:, 1]) / errors
    assert moved[:, -1] == pytest.approx(moved[:, -2])
    assert abs(np.corrcoef(moved[:, 0], moved[:, 1])[0, 1]) < 0.2


def test_the_shortest_series_varies() -> None:
    (path,) = variations([(1.0, 2.0), (1.0, 3.0), (1.0, 1.0)], count=1, seed=0)
    assert path.steps == 3


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
