"""Fit a Gaussian process with a known length scale to a curve on [0, 1].

    y(x) = mean + f(x) + noise,    f ~ GP(0, s * k),    k(x, z) = exp(-(x - z)^2 / (2 * l^2))

The noise has the variance s * r / count if y is the mean of `count` values. The signal variance s
and the noise ratio r maximize the marginal likelihood. For each r, the best s has a closed form, so
only r is searched, on a grid that is refined. Nothing is drawn at random.

With l = 0.2, the kernel on [0, 1] has 18 eigenvalues that float64 can distinguish from zero.
Therefore the curve f is a weighted sum of 18 fixed functions, and no matrix is larger than n x 32.

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
"""Number of points of the Nystroem approximation. For l = 0.2, the approximation is exact up to
rounding from 24 points on."""

SMALLEST = 1e-13
"""Fraction of the largest eigenvalue below which an eigenvalue counts as rounding error."""

RATIOS = (-6.0, 6.0)
"""Smallest and largest exponent of 10 in the search for the noise ratio r."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """Hold the posterior of f at G points of [0, 1].

    Args:
        x: The points in rising order, [G]; the last point is the present.
        mean: Posterior mean of the curve at the points `x`, including the mean of the data, [G].
        spread: Matrix [G, K] with f = mean + spread @ w, where w has K independent standard normal
            entries.
        unit: Standard deviation of the data, which scales all other numbers.
        noise: Standard deviation of one recorded value around the curve.
    """

    x: Row
    mean: Row
    spread: Row
    unit: float
    noise: float

    @property
    def lowest(self) -> int:
        """Index of the first point with the smallest posterior mean."""
        return int(np.argmin(self.mean))

    def rise(self, at: int) -> tuple[float, float]:
        """Return mean and standard deviation of f(last point) - f(point with index `at`)."""
        row = self.spread[-1] - self.spread[at]
        return float(self.mean[-1] - self.mean[at]), math.sqrt(float(row @ row))

    def risen(self, *, floor: float) -> float:
        """Return the largest probability, over all earlier points, that f is lower at the earlier
        point than at the last point.

        Each pair of points is compared separately. For constant data the result is 0.5.

        Args:
            floor: Variance added to the variance of each difference between two points, in units of
                the variance of the data.
        """
        if self.unit == 0.0:
            return 0.5
        # Divide by the unit first, because the square of the data may overflow.
        rows = (self.spread[:-1] - self.spread[-1]) / self.unit
        deviation = np.sqrt(np.einsum("gk,gk->g", rows, rows) + floor)
        return normal(float(((self.mean[-1] - self.mean[:-1]) / self.unit / deviation).max()))

    def fallen(self, since: int, *, floor: float) -> float:
        """Return the probability that f is lower at the last point than at `since`; 0.5 for
        constant data.

        Args:
            since: Index of a point.
            floor: Variance added to the variance of the difference, as in `risen`.
        """
        if self.unit == 0.0:
            return 0.5
        row = (self.spread[-1] - self.spread[since]) / self.unit
        deviation = math.sqrt(float(row @ row) + floor)
        return normal(float(self.mean[since] - self.mean[-1]) / self.unit / deviation)

    def moved(self, *, floor: float) -> float:
        """Return the largest difference between two points of the curve, in standard deviations.

        Each pair of points is compared separately. For constant data the result is 0.

        Args:
            floor: Variance added to the variance of each difference between two points, as in
                `risen`.
        """
        if self.unit == 0.0:
            return 0.0
        rows, mean = self.spread / self.unit, self.mean / self.unit
        products = rows @ rows.T
        squares = np.diag(products)
        variances = np.maximum(squares[:, None] + squares - 2.0 * products, 0.0) + floor
        return float((np.abs(mean[:, None] - mean) / np.sqrt(variances)).max())


def normal(z: float) -> float:
    """Return the probability that a standard normal number is below z.

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
        x: Positions of the means, in [0, 1], [N].
        y: Means of recorded values, finite, [N].
        counts: Number of values in each mean, above 0, [N].
        length_scale: Length scale l, at least 0.1.
        points: Number G of evenly spaced points on [0, 1].
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
    # Share of the target in each eigenvector. A direction without data has no share.
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
    """Return mean and standard deviation of all recorded values; the standard deviation is 0 if the
    values differ by rounding only."""
    centre = float(np.average(y, weights=counts))
    unit = math.sqrt(float(np.average((y - centre) ** 2, weights=counts)))
    return centre, unit if unit > 1e-12 * abs(centre) else 0.0


def _signal(eigenvalues: Row, shares: Row, rest: float, ratio: float, *, count: int) -> float:
    """Return the most likely signal variance s for a given noise ratio r."""
    return float((shares / (eigenvalues + ratio)).sum() + rest / ratio) / count


def _most_likely(eigenvalues: Row, shares: Row, rest: float, *, count: int) -> float:
    """Return the most likely noise ratio r, from a grid of exponents that is refined twice."""
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
    """Return the knots [K], and the matrix [K, M] that turns kernel values at the knots into
    features."""
    knots = np.linspace(0.0, 1.0, KNOTS)
    eigenvalues, vectors = np.linalg.eigh(_kernel(knots, knots, length_scale))
    kept = eigenvalues > SMALLEST * eigenvalues[-1]
    return knots, vectors[:, kept] / np.sqrt(eigenvalues[kept])


@cache
def _grid_features(length_scale: float, points: int) -> Row:
    return _features(np.linspace(0.0, 1.0, points), length_scale)


def _features(x: Row, length_scale: float) -> Row:
    """Return the features phi [N, M] of the points x, with phi(x) . phi(z) = k(x, z)."""
    knots, basis = _basis(length_scale)
    return _kernel(x, knots, length_scale) @ basis


def _kernel(x: Row, z: Row, length_scale: float) -> Row:
    return np.exp(-0.5 * ((x[:, None] - z) / length_scale) ** 2)
