"""The curve behind noisy numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from largebatch.rules.auto_warm_up import gaussian_process
from largebatch.rules.auto_warm_up.gaussian_process import normal, posterior_of

SCALE = 0.2


def kernel(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((x[:, None] - z[None, :]) / SCALE) ** 2)


def valley(count: int, *, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = (np.arange(count) + 0.5) / count
    generator = np.random.default_rng(seed)
    y = 2.3 - 3.0 * np.minimum(x, 0.6) + 5.0 * np.maximum(x - 0.6, 0.0)
    return x, y + noise * generator.standard_normal(count)


def naive(
    x: np.ndarray, y: np.ndarray, counts: np.ndarray, grid: np.ndarray, *, signal: float,
    ratio: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mean and covariance by the textbook, with a matrix of all points."""
    centre = np.average(y, weights=counts)
    noise = signal * ratio * counts.mean() / counts
    inverse = np.linalg.inv(signal * kernel(x, x) + np.diag(noise))
    across = signal * kernel(grid, x)
    mean = centre + across @ inverse @ (y - centre)
    return mean, signal * kernel(grid, grid) - across @ inverse @ across.T


def likelihood(
    x: np.ndarray, y: np.ndarray, counts: np.ndarray, *, signal: float, ratio: float
) -> float:
    """The logarithm of the density of the data, but for a constant."""
    noise = signal * ratio * counts.mean() / counts
    covariance = signal * kernel(x, x) + np.diag(noise)
    apart = y - np.average(y, weights=counts)
    return -0.5 * (apart @ np.linalg.solve(covariance, apart) + np.linalg.slogdet(covariance)[1])


@pytest.mark.parametrize("count", [17, 60, 128])
@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_the_gaussian_process_is_that_of_scikit_learn(count: int, noise: float) -> None:
    process = pytest.importorskip("sklearn.gaussian_process")
    kernels = process.kernels
    x, y = valley(count, noise=noise, seed=count)
    curve = posterior_of(x, y, np.ones(count))
    whole = kernels.ConstantKernel(1.0, (1e-8, 1e8)) * kernels.RBF(
        SCALE, "fixed"
    ) + kernels.WhiteKernel(1e-2, (1e-9, 1e6))
    twin = process.GaussianProcessRegressor(
        whole, alpha=0.0, n_restarts_optimizer=3, random_state=0
    )
    twin.fit(x[:, None], (y - y.mean()) / y.std())
    mean, covariance = twin.predict(curve.x[:, None], return_cov=True)
    level = twin.kernel_.k2.noise_level
    covariance -= level * np.eye(len(covariance))
    assert curve.noise / curve.unit == pytest.approx(math.sqrt(level), rel=0.01, abs=1e-3)
    np.testing.assert_allclose((curve.mean - y.mean()) / y.std(), mean, atol=5e-3)
    ours = curve.spread @ curve.spread.T / y.std() ** 2
    np.testing.assert_allclose(ours, covariance, atol=5e-3 * max(covariance.max(), 0.01))


def test_the_gaussian_process_follows_the_textbook_for_means_of_unequal_counts() -> None:
    x, y = valley(40, noise=0.1, seed=1)
    counts = np.where(np.arange(40) % 3, 1.0, 7.0)
    curve = posterior_of(x, y, counts)
    signal, ratio = curve.unit**2, 1e-2
    for width in (30.0, 1.2):
        _, signal, ratio = max(
            (likelihood(x, y, counts, signal=s, ratio=r), s, r)
            for s in signal * np.geomspace(1 / width, width, 41)
            for r in ratio * np.geomspace(1 / width, width, 41)
        )
    mean, covariance = naive(x, y, counts, curve.x, signal=signal, ratio=ratio)
    np.testing.assert_allclose(curve.mean, mean, atol=2e-3)
    np.testing.assert_allclose(curve.spread @ curve.spread.T, covariance, atol=2e-4)


def test_the_features_of_the_gaussian_process_give_its_kernel() -> None:
    x = np.random.default_rng(0).uniform(size=200)
    features = gaussian_process._features(x, SCALE)
    np.testing.assert_allclose(features @ features.T, kernel(x, x), atol=1e-11)


def test_the_noise_it_finds_is_that_of_the_data() -> None:
    x, y = valley(128, noise=0.3, seed=0)
    assert posterior_of(x, y, np.ones(128)).noise == pytest.approx(0.3, rel=0.2)
    nine = np.array([valley(128, noise=0.3, seed=seed)[1] for seed in range(9)])
    assert posterior_of(x, nine.mean(0), np.full(128, 9.0)).noise == pytest.approx(0.3, rel=0.2)


@settings(max_examples=30, deadline=None)
@given(
    factor=st.floats(1e-6, 1e6), shift=st.floats(-10, 10), seed=st.integers(0, 1000),
    count=st.integers(2, 128),
)  # fmt: skip
def test_the_gaussian_process_does_not_depend_on_the_unit_of_the_loss(
    factor: float, shift: float, seed: int, count: int
) -> None:
    x, y = valley(count, noise=0.2, seed=seed)
    one, other = (
        posterior_of(x, y, np.ones(count)),
        posterior_of(x, factor * (y + shift), np.ones(count)),
    )
    assert other.risen(floor=1e-4) == pytest.approx(one.risen(floor=1e-4), abs=1e-4)
    np.testing.assert_allclose(other.mean / factor - shift, one.mean, atol=1e-4)


def test_a_curve_that_falls_has_not_risen_and_one_that_turned_has() -> None:
    x = np.linspace(0.0, 1.0, 64)
    noise = 0.05 * np.random.default_rng(0).standard_normal(64)
    assert posterior_of(x, -x + noise, np.ones(64)).risen(floor=0.0) < 0.6
    assert posterior_of(x, abs(x - 0.5) + noise, np.ones(64)).risen(floor=0.0) > 0.999


def test_the_probability_is_that_of_drawn_curves() -> None:
    x, y = valley(30, noise=0.8, seed=3)
    curve = posterior_of(x, y, np.ones(30))
    generator = np.random.default_rng(0)
    drawn = curve.mean + generator.standard_normal((20_000, curve.spread.shape[1])) @ curve.spread.T
    shares = (drawn[:, :-1] < drawn[:, -1:]).mean(0)
    assert curve.risen(floor=0.0) == pytest.approx(shares.max(), abs=0.01)
    for at in (0, curve.lowest, 100):
        share = (drawn[:, -1] < drawn[:, at]).mean()
        assert curve.fallen(at, floor=0.0) == pytest.approx(share, abs=0.01)
    mean, deviation = curve.rise(curve.lowest)
    rises = drawn[:, -1] - drawn[:, curve.lowest]
    assert (mean, deviation) == pytest.approx((rises.mean(), rises.std()), rel=0.05)


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("value", [0.0, 2.3, -1e9])
def test_a_constant_loss_gives_a_probability_of_one_half_for_a_rise(
    count: int, value: float
) -> None:
    x = (np.arange(count) + 0.5) / count
    curve = posterior_of(x, np.full(count, value), np.ones(count))
    assert curve.risen(floor=1e-4) == curve.fallen(0, floor=1e-4) == 0.5
    assert curve.lowest == 0
    assert curve.rise(0) == (0.0, 0.0)


@settings(max_examples=50, deadline=None)
@given(ys=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=128))
@example(ys=[0.0, 1e-160])  # whose square is hardly a float
def test_any_finite_numbers_give_a_curve(ys: list[float]) -> None:
    x = (np.arange(len(ys)) + 0.5) / len(ys)
    curve = posterior_of(x, np.array(ys), np.ones(len(ys)))
    assert np.isfinite(curve.mean).all()
    assert np.isfinite(curve.spread).all()
    assert 0.0 <= curve.risen(floor=1e-4) <= 1.0
    assert 0.0 <= curve.fallen(0, floor=1e-4) <= 1.0


def test_the_normal_distribution_has_its_table() -> None:
    assert normal(1.6448536269514722) == pytest.approx(0.95, abs=1e-12)
