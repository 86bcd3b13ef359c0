"""A line through points that scatter by a share of themselves, and the ratio of its coefficients.

    y_i = (intercept + slope x_i) (1 + e_i),    e_i independent, mean 0, equal variance

Fitted with the weights 1 / y^2, y that of the line itself and not the measured one, which would
draw the line to the points that came out low; the fit is repeated until the weights are its own.
The interval of slope / intercept holds every q with |slope - q intercept| <= t se(slope - q
intercept): no division by an intercept near 0 occurs.

Wedderburn: Quasi-likelihood Functions, Generalized Linear Models, and the Gauss-Newton Method,
1974, Biometrika. Fieller: Some Problems in Interval Estimation, 1954, Journal of the Royal
Statistical Society B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

REPEATS = 100
"""Of the fit; some ten are enough where there is signal."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A fitted line.

    Args:
        intercept, slope: of the line.
        covariance: of these two, [2, 2].
        spread: standard deviation of the points about the line, as a share of it.
    """

    intercept: float
    slope: float
    covariance: Array
    spread: float

    def ratio_interval(self, t: float) -> tuple[float, float] | Literal["intercept", "slope"]:
        """The ends of slope / intercept, in no order; or which of the two may be 0, so that the
        interval would reach to infinity or to 0.

        >>> line = Line(intercept=1.0, slope=2.0, covariance=np.zeros((2, 2)), spread=0.0)
        >>> line.ratio_interval(2.0)
        (2.0, 2.0)
        """
        spread = t * t * self.covariance
        a = self.intercept**2 - float(spread[0, 0])
        b = self.intercept * self.slope - float(spread[0, 1])
        c = self.slope**2 - float(spread[1, 1])
        if a <= 0.0:
            return "intercept"
        if c <= 0.0:
            return "slope"
        # the ends solve a q^2 - 2 b q + c = 0; `far` is the numerator that does not cancel
        far = b + math.copysign(math.sqrt(max(b * b - a * c, 0.0)), b)
        return far / a, c / far


def line_through(x: Array, y: Array) -> Line | None:
    """The line through points; None where it falls below 0 at one of them.

    >>> line = line_through(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    >>> round(line.intercept, 9), round(line.slope, 9)
    (1.0, 2.0)

    Args:
        x: [K], at least 0, of at least two different values; K at least 3.
        y: [K], above 0.
    """
    unit = x.max()  # so that the columns are of like size
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
