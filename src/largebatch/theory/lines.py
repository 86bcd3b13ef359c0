"""Fit a line to points whose scatter is proportional to the line.

    y_i = (intercept + slope * x_i) * (1 + e_i),    e_i independent, mean 0, equal variance

The weights of the fit are 1 / y^2, where y is the value of the line. With weights from the measured
y, the line would be pulled towards points that are too low by chance. So the fit is repeated until
the weights agree with the line. The interval of slope / intercept contains every q with |slope - q
* intercept| <= t * se(slope - q * intercept). The formula for the interval never divides by the
intercept.

References: Wedderburn, Quasi-likelihood Functions, Generalized Linear Models, and the Gauss-Newton
Method, 1974, Biometrika. Fieller, Some Problems in Interval Estimation, 1954, Journal of the Royal
Statistical Society B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

REPEATS = 100
"""Largest number of repetitions of the fit. About ten repetitions are enough if the scatter is
small.
"""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Hold a fitted line.

    Args:
        intercept: Value of the line at x = 0.
        slope: Slope of the line.
        covariance: Covariance of intercept and slope, of shape [2, 2].
        spread: Standard deviation of the points from the line, relative to the line.
    """

    intercept: float
    slope: float
    covariance: Array
    spread: float

    def ratio_interval(self, t: float) -> tuple[float, float] | Literal["intercept", "slope"]:
        """Return the bounds of slope / intercept in any order, or the name of a coefficient that
        may be 0.

        If the intercept may be 0, the interval would extend to infinity. If the slope may be 0, the
        interval would contain 0.

        >>> line = Line(intercept=1.0, slope=2.0, covariance=np.zeros((2, 2)), spread=0.0)
        >>> line.ratio_interval(2.0)
        (2.0, 2.0)

        Args:
            t: Quantile of Student's t.
        """
        spread = t * t * self.covariance
        a = self.intercept**2 - float(spread[0, 0])
        b = self.intercept * self.slope - float(spread[0, 1])
        c = self.slope**2 - float(spread[1, 1])
        if a <= 0.0:
            return "intercept"
        if c <= 0.0:
            return "slope"
        # The bounds solve a q^2 - 2 b q + c = 0. `far` is the numerator without cancellation.
        far = b + math.copysign(math.sqrt(max(b * b - a * c, 0.0)), b)
        return far / a, c / far


def line_through(x: Array, y: Array) -> Line | None:
    """Return the line through points, or None if the line is not above 0 at every point.

    >>> line = line_through(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    >>> round(line.intercept, 9), round(line.slope, 9)
    (1.0, 2.0)

    Args:
        x: Coordinates of shape [K], at least 0, with at least two different values; K is at least
            3.
        y: Values of shape [K], above 0.
    """
    unit = x.max()  # scales both columns to a similar size
    columns = np.stack([np.ones_like(x), x / unit], axis=1)
    fitted: Array = y
    found: Array = np.zeros(2)
    for _ in range(REPEATS):
        before = found
        weighted = columns / fitted[:, None]
        found = np.asarray(np.linalg.lstsq(weighted, y / fitted, rcond=None)[0], dtype=np.float64)
        fitted = columns @ found
        if (fitted <= 0.0).any():
            return None
        if np.allclose(found, before, rtol=1e-13, atol=0.0):
            break
    distance, weighted = y / fitted - 1.0, columns / fitted[:, None]
    variance = float(distance @ distance) / (len(x) - 2)
    scale = np.array([1.0, 1.0 / unit])
    unscaled = np.asarray(np.linalg.inv(weighted.T @ weighted), dtype=np.float64)
    intercept, slope = (float(value) for value in found * scale)
    return Line(
        intercept=intercept,
        slope=slope,
        covariance=variance * unscaled * np.outer(scale, scale),
        spread=math.sqrt(variance),
    )
