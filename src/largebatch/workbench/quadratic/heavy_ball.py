"""Model SGD with momentum on a noisy quadratic, with a closed form for any whole number of steps.

    v' = m * v + g,   theta' = theta - lr * v'      z = (theta, v),   z' = A * z + u * noise
    A = [[1 - h, -lr * m], [lambda, m]],   u = (-lr, 1),   h = lr * lambda
    A^K = p_K * A - m * p_(K-1),   p_K = (r1^K - r2^K) / (r1 - r2)   r1, r2: eigenvalues of A
    E zz' after K steps = A^K E zz' A^K' + (c / b) * (S - A^K S A^K')   S = A S A' + u u'

S is the second moment E zz' after infinitely many steps with noise of variance 1, if h < 2 * (1 +
m). The formula for K steps also holds for h > 2 * (1 + m). The formulas in this file are this
library's own derivation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np

from largebatch.workbench.quadratic.dynamics import Phase, whole_steps
from largebatch.workbench.quadratic.spectrum import Array, Spectrum

Matrix: TypeAlias = tuple[tuple[Array, Array], tuple[Array, Array]]

EDGE = 1e-8
"""Smallest relative distance of h from the stability limit 2 * (1 + m), at which S is infinite."""


@dataclass(frozen=True, slots=True)
class Transition:
    """Describe one step at a learning rate by its matrix A for every direction."""

    curvature: Array
    lr: float
    momentum: float

    @classmethod
    def of(cls, spectrum: Spectrum, phase: Phase, *, momentum: float) -> Self:
        """Return the step of a phase; if h is at the stability limit, h is set slightly below."""
        h, limit = phase.lr * spectrum.curvature, 2.0 * (1.0 + momentum)
        below = np.where(np.abs(h - limit) < EDGE * limit, 1.0 - EDGE, 1.0)
        return cls(spectrum.curvature * below, phase.lr, momentum)

    @property
    def h(self) -> Array:
        """Return h: learning rate times curvature, [D]."""
        return self.lr * self.curvature

    def matrix(self) -> Matrix:
        """Return A, by which one step multiplies the vector of weight and velocity."""
        ones = np.ones_like(self.curvature)
        return (
            (1.0 - self.h, -self.lr * self.momentum * ones),
            (self.curvature, self.momentum * ones),
        )

    def power(self, steps: int) -> Matrix:
        """Return A^K for K steps, K at least 1."""
        p, before = (self._p(n) for n in (steps, steps - 1))
        (a, b), (c, d) = self.matrix()
        less = self.momentum * before
        return (p * a - less, p * b), (p * c, p * d - less)

    def stationary(self) -> tuple[Array, Array, Array]:
        """Return the entries of S for theta^2, theta v and v^2."""
        m, h = self.momentum, self.h
        common = (1.0 + m) / ((1.0 - m) * (2.0 * (1.0 + m) - h))
        v = (h * common + 1.0) / (1.0 - m**2 + m * h)
        return self.lr / self.curvature * common, -0.5 * self.lr * v, v

    def _p(self, n: int) -> Array:
        """Return p_n.

        The two eigenvalues of A are either real, sign r and sign m / r with r >= sqrt(m), or
        complex with the absolute value sqrt(m).
        """
        h, m = self.h, self.momentum
        if n == 0:
            return np.zeros_like(h)
        trace, size = 1.0 + m - h, math.sqrt(m)
        square = (1.0 - m) ** 2 - 2.0 * h * (1.0 + m) + h**2  # trace^2 - 4 m
        root = np.sqrt(np.abs(square))
        large = np.maximum(0.5 * (np.abs(trace) + root), np.finfo(np.float64).tiny)
        # 1 - large follows from the product (1 - r1) (1 - r2), which has no rounding error.
        short = np.where(trace >= 0.0, h, 2.0 * (1.0 + m) - h) / (1.0 - m / large)
        log_size = np.log1p(-short) if n > 1 else np.zeros_like(h)
        apart = np.maximum(-root / large, -1.0)  # r2 / r1 - 1; below -1 only because of rounding
        real = np.where(root == 0.0, n, np.expm1(n * np.log1p(apart)) / apart)
        real = np.exp((n - 1) * log_size) * real if n > 1 else real
        angle = np.arctan2(root, np.abs(trace))
        turning = size ** (n - 1) * np.sin(n * angle) / np.sin(angle)
        sign = np.where((trace < 0.0) & (n % 2 == 0), -1.0, 1.0)
        return sign * np.where(square >= 0.0, real, turning)


def carried(a: Matrix, moments: Array) -> Array:
    """Return the product a P a' of symmetric 2 x 2 matrices P, one for each direction.

    P and the result are given by their entries (1, 1), (1, 2) and (2, 2).
    """
    (a11, a12), (a21, a22) = a
    x, y, z = moments
    return np.stack(
        [
            a11 * a11 * x + 2.0 * a11 * a12 * y + a12 * a12 * z,
            a11 * a21 * x + (a11 * a22 + a12 * a21) * y + a12 * a22 * z,
            a21 * a21 * x + 2.0 * a21 * a22 * y + a22 * a22 * z,
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeavyBall:
    """Model SGD with momentum as torch defines it: v = momentum * v + g, theta = theta - lr * v.

    >>> spectrum = Spectrum(curvature=[1.0], noise=[0.0], second_moment=[1.0])
    >>> after = HeavyBall(momentum=0.5).advance(
    ...     spectrum, HeavyBall(momentum=0.5).start(spectrum), Phase(batch_size=8, lr=0.5, steps=2))
    >>> after.round(6).ravel().tolist()  # theta -> 0.5 -> -0.0, v -> 1.0 -> 1.0
    [0.0, 0.0, 1.0]

    Args:
        momentum: Momentum factor, in [0, 1).

    Raises:
        ValueError: The momentum is outside [0, 1).
    """

    momentum: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(
                f"momentum={self.momentum!r} was given, but the momentum must be in [0, 1). Pass "
                "momentum=0.9."
            )

    def start(self, spectrum: Spectrum) -> Array:
        zeros = np.zeros_like(spectrum.second_moment)
        return np.stack([spectrum.second_moment, zeros, zeros])

    def advance(self, spectrum: Spectrum, moments: Array, phase: Phase) -> Array:
        steps = whole_steps(phase, who="HeavyBall")
        step = Transition.of(spectrum, phase, momentum=self.momentum)
        with np.errstate(all="ignore"):
            power, final = step.power(steps), np.stack(step.stationary())
            noise = final - carried(power, final)
            noise[[0, 2]] = np.maximum(noise[[0, 2]], 0.0)  # below 0 only because of rounding
            after: Array = carried(power, moments) + spectrum.noise / phase.batch_size * noise
        return after

    def second_moment(self, moments: Array) -> Array:
        kept: Array = moments[0]
        return kept

    def max_lr(self, spectrum: Spectrum) -> float:
        return (1.0 + self.momentum) * spectrum.max_lr
