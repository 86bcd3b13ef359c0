"""Gaussian-process regression of a curve on [0, 1] whose length scale is known.

    y(x) = mean + f(x) + noise,    f ~ GP(0, s k),    k(x, z) = exp(-(x - z)^2 / (2 l^2))

with noise of the variance s r / count where y is the mean of `count` values. Signal variance s and
noise ratio r are those of the largest marginal likelihood: s has a closed form for each r, so that
one number is searched, on a grid that is refined; nothing is drawn at random.

With l = 0.2 the kernel on [0, 1] has 18 eigenvalues that float64 can tell from zero: f is a
weighted sum of that many fixed functions, and no matrix is larger than n x 32.

Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, sections 2.2 and 5.4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float64]

KNOTS = 32
"""Points of the Nystroem approximation; from 24 on it is exact to rounding for l = 0.2."""

SMALLEST = 1e-13
"""An eigenvalue below this fraction of the largest is rounding."""

RATIOS = (-6.0, 6.0)
"""Decades of r that are searched."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """The posterior of f at points of [0, 1]; arrays of equal length G.

    Args:
        x: the points, rising; the last one is now.
        mean: of the curve, with the data's mean.
        spread: f = mean + spread @ w with w of independent standard normal numbers, [G, K].
        unit: standard deviation of the data, by which everything is scaled.
        noise: standard deviation of one recorded value around the curve.
    """

    x: Row
    mean: Row
    spread: Row
    unit: float
    noise: float

    @property
    def lowest(self) -> int:
        """The point with the least posterior mean, the first of several."""
        return int(np.argmin(self.mean))

    def rise(self, at: int) -> tuple[float, float]:
        """f at the last point less f at another one: mean and standard deviation."""
        row = self.spread[-1] - self.spread[at]
        return float(self.mean[-1] - self.mean[at]), math.sqrt(float(row @ row))

    def risen(self, *, floor: float) -> float:
        """max over earlier points of P(f there < f at the last one), each pair by itself; 0.5 for a
        constant.

        Args:
            floor: variance added to that of each difference, in units of that of the data.
        """
        if self.unit == 0.0:
            return 0.5
        # in units of the data, whose square need not be a float
        rows = (self.spread[:-1] - self.spread[-1]) / self.unit
        deviation = np.sqrt(np.einsum("gk,gk->g", rows, rows) + floor)
        return normal(float(((self.mean[-1] - self.mean[:-1]) / self.unit / deviation).max()))

    def fallen(self, since: int, *, floor: float) -> float:
        """P(f at the last point < f at the point `since`); 0.5 for a constant.

        Args:
            since: a point.
            floor: as in `risen`.
        """
        if self.unit == 0.0:
            return 0.5
        row = (self.spread[-1] - self.spread[since]) / self.unit
        deviation = math.sqrt(float(row @ row) + floor)
        return normal(float(self.mean[since] - self.mean[-1]) / self.unit / deviation)

    def moved(self, *, floor: float) -> float:
        """Return by how many standard deviations two points of the curve differ at most, each pair
        by itself; 0 for a constant.

        Args:
            floor: as in `risen`.
        """
        if self.unit == 0.0:
            return 0.0
        rows, mean = self.spread / self.unit, self.mean / self.unit
        products = rows @ rows.T
        squares = np.diag(products)
        variances = np.maximum(squares[:, None] + squares - 2.0 * products, 0.0) + floor
        return float((np.abs(mean[:, None] - mean) / np.sqrt(variances)).max())


def normal(z: float) -> float:
    """P(standard normal < z).

    >>> normal(0.0)
    0.5
    """
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def posterior_of(
    x: Row, y: Row, counts: Row, *, length_scale: float = 0.2, points: int = 128
) -> Posterior:
    """Return the posterior of the curve behind noisy means.

    >>> x = np.linspace(0.0, 1.0, 50)
    >>> curve = posterior_of(x, (x - 0.6) ** 2, np.ones(50))
    >>> round(float(curve.x[curve.lowest]), 2)
    0.6

    Args:
        x: where, in [0, 1], [N].
        y: means of recorded values, finite, [N].
        counts: of how many values each is the mean, above 0, [N].
        length_scale: l, at least 0.1.
        points: G, evenly spaced on [0, 1].
    """
    grid = np.linspace(0.0, 1.0, points)
    centre, unit = _standard(y, counts)
    at_grid = _grid_features(length_scale, points)
    if unit == 0.0:
        return Posterior(grid, np.full(points, centre), np.zeros_like(at_grid), 0.0, 0.0)
    weights = np.sqrt(counts / counts.mean())
    features = weights[:, None] * _features(x, length_scale)
    target = weights * (y - centre) / unit
    eigenvalues, vectors = np.linalg.eigh(features.T @ features)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    # the target's share in each eigenvector; a direction without data has none
    squares = (vectors.T @ (features.T @ target)) ** 2
    seen = eigenvalues > SMALLEST * eigenvalues[-1]
    shares = np.divide(squares, eigenvalues, out=np.zeros_like(squares), where=seen)
    rest = max(float(target @ target - shares.sum()), 1e-12 * len(y))
    ratio = _most_likely(eigenvalues, shares, rest, count=len(y))
    signal = _signal(eigenvalues, shares, rest, ratio, count=len(y))
    shrunk = vectors / (eigenvalues + ratio)
    mean = at_grid @ (shrunk @ (vectors.T @ (features.T @ target)))
    spread = at_grid @ (vectors * np.sqrt(signal * ratio / (eigenvalues + ratio)))
    noise = unit * math.sqrt(signal * ratio * float(counts.mean()))
    return Posterior(grid, centre + unit * mean, unit * spread, unit, noise)


def _standard(y: Row, counts: Row) -> tuple[float, float]:
    """Mean and standard deviation of all values behind the means; 0 where rounding is all."""
    centre = float(np.average(y, weights=counts))
    unit = math.sqrt(float(np.average((y - centre) ** 2, weights=counts)))
    return centre, unit if unit > 1e-12 * abs(centre) else 0.0


def _signal(eigenvalues: Row, shares: Row, rest: float, ratio: float, *, count: int) -> float:
    """The most likely s, given r."""
    return float((shares / (eigenvalues + ratio)).sum() + rest / ratio) / count


def _most_likely(eigenvalues: Row, shares: Row, rest: float, *, count: int) -> float:
    """The most likely r: a grid of decades, refined twice."""
    low, high = RATIOS
    best = 0.0
    for _ in range(3):
        exponents = np.linspace(low, high, 25)
        ratios = 10.0 ** exponents[:, None]
        signal = ((shares / (eigenvalues + ratios)).sum(1) + rest / ratios[:, 0]) / count
        free = count - len(eigenvalues)
        cost = count * np.log(signal) + np.log(eigenvalues + ratios).sum(1)
        cost += free * np.log(ratios[:, 0])
        best = float(exponents[int(np.argmin(cost))])
        step = (high - low) / 24
        low, high = best - step, best + step
    return math.pow(10.0, best)


@cache
def _basis(length_scale: float) -> tuple[Row, Row]:
    """Knots [K], and what turns kernels with them into features, [K, M]."""
    knots = np.linspace(0.0, 1.0, KNOTS)
    eigenvalues, vectors = np.linalg.eigh(_kernel(knots, knots, length_scale))
    kept = eigenvalues > SMALLEST * eigenvalues[-1]
    return knots, vectors[:, kept] / np.sqrt(eigenvalues[kept])


@cache
def _grid_features(length_scale: float, points: int) -> Row:
    return _features(np.linspace(0.0, 1.0, points), length_scale)


def _features(x: Row, length_scale: float) -> Row:
    """phi [N, M] with phi(x) . phi(z) = k(x, z)."""
    knots, basis = _basis(length_scale)
    return _kernel(x, knots, length_scale) @ basis


def _kernel(x: Row, z: Row, length_scale: float) -> Row:
    return np.exp(-0.5 * ((x[:, None] - z) / length_scale) ** 2)
