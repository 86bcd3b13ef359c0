"""Test that the interval covers the noise scale for few and unequal gradient directions.

`benchmarks/noise_coverage.py` has the whole grid.
"""

from __future__ import annotations

import numpy as np
import pytest

from noise_coverage import SPECTRA, coverage_of, equal, series


@pytest.mark.parametrize("name", ["1 direction", "2 equal directions", "200 directions, 1 / i^2"])
@pytest.mark.parametrize(("noise_scale", "parts"), [(10.0, 2), (300.0, 4)])
def test_the_interval_covers_for_few_and_for_unequal_directions(
    name: str, noise_scale: float, parts: int
) -> None:
    cell = coverage_of(
        steps=64, parts=parts, noise_scale=noise_scale, shares=SPECTRA[name], runs=300
    )
    # one standard error is 0.0126 where the true coverage is 0.95
    assert 0.91 <= cell.covered <= 0.995
    assert cell.answered >= 0.97


@pytest.mark.parametrize("name", list(SPECTRA))
def test_the_drawn_estimates_are_unbiased(name: str) -> None:
    rng = np.random.default_rng(0)
    pairs = series(rng, steps=20_000, parts=4, noise_scale=30.0, shares=SPECTRA[name])
    error = pairs.std(axis=0) / len(pairs) ** 0.5
    assert np.all(np.abs(pairs.mean(axis=0) - [30.0, 1.0]) < 4.0 * error)


def test_shares_of_the_variance_sum_to_1() -> None:
    assert [shares.sum() for shares in SPECTRA.values()] == pytest.approx([1.0] * len(SPECTRA))
    assert equal(4).tolist() == [0.25] * 4
