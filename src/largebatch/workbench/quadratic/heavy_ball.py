"""SGD with momentum on a noisy quadratic, any whole number of steps in closed form.

    v' = m v + g,   theta' = theta - lr v'         z = (theta, v),   z' = A z + u noise
    A = [[1 - h, -lr m], [lambda, m]],   u = (-lr, 1),   h = lr lambda
    A^K = p_K A - m p_(K-1),   p_K = (r1^K - r2^K) / (r1 - r2)      r1, r2: eigenvalues of A
    E zz' after K steps = A^K E zz' A^K' + (c / b) (S - A^K S A^K')  S = A S A' + u u'

S is what unit noise comes to in the end, if h < 2 (1 + m); the sum holds past that limit, too.
Derived here.
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
"""Nearer to its limit a rate is taken so much smaller: S is infinite at the limit itself."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One step at a rate: A for every direction."""

    curvature: Array
    lr: float
    momentum: float

    @classmethod
    def of(cls, spectrum: Spectrum, phase: Phase, *, momentum: float) -> Self:
        """Return the step of a phase, with a learning rate kept off the limit of stability."""
        h, limit = phase.lr * spectrum.curvature, 2.0 * (1.0 + momentum)
        below = np.where(np.abs(h - limit) < EDGE * limit, 1.0 - EDGE, 1.0)
        return cls(spectrum.curvature * below, phase.lr, momentum)

    @property
    def h(self) -> Array:
        """Rate times curvature."""
        return self.lr * self.curvature

    def matrix(self) -> Matrix:
        """Return A, the matrix that one step multiplies position and velocity by."""
        ones = np.ones_like(self.curvature)
        return (
            (1.0 - self.h, -self.lr * self.momentum * ones),
            (self.curvature, self.momentum * ones),
        )

    def power(self, steps: int) -> Matrix:
        """A^K, for K of at least 1."""
        p, before = (self._p(n) for n in (steps, steps - 1))
        (a, b), (c, d) = self.matrix()
        less = self.momentum * before
        return (p * a - less, p * b), (p * c, p * d - less)

    def stationary(self) -> tuple[Array, Array, Array]:
        """S by its entries: of theta^2, theta v, v^2."""
        m, h = self.momentum, self.h
        common = (1.0 + m) / ((1.0 - m) * (2.0 * (1.0 + m) - h))
        v = (h * common + 1.0) / (1.0 - m**2 + m * h)
        return self.lr / self.curvature * common, -0.5 * self.lr * v, v

    def _p(self, n: int) -> Array:
        """p_n. Both eigenvalues are sign r, sign m / r with r >= sqrt(m), or of size sqrt(m)."""
        h, m = self.h, self.momentum
        if n == 0:
            return np.zeros_like(h)
        trace, size = 1.0 + m - h, math.sqrt(m)
        square = (1.0 - m) ** 2 - 2.0 * h * (1.0 + m) + h**2  # trace^2 - 4 m
        root = np.sqrt(np.abs(square))
        large = np.maximum(0.5 * (np.abs(trace) + root), np.finfo(np.float64).tiny)
        # 1 - large from the product of (1 - r1) (1 - r2), which keeps its digits
        short = np.where(trace >= 0.0, h, 2.0 * (1.0 + m) - h) / (1.0 - m / large)
        log_size = np.log1p(-short) if n > 1 else np.zeros_like(h)
        apart = np.maximum(-root / large, -1.0)  # r2 / r1 - 1; past -1 by rounding alone
        real = np.where(root == 0.0, n, np.expm1(n * np.log1p(apart)) / apart)
        real = np.exp((n - 1) * log_size) * real if n > 1 else real
        angle = np.arctan2(root, np.abs(trace))
        turning = size ** (n - 1) * np.sin(n * angle) / np.sin(angle)
        sign = np.where((trace < 0.0) & (n % 2 == 0), -1.0, 1.0)
        return sign * np.where(square >= 0.0, real, turning)


def carried(a: Matrix, moments: Array) -> Array:
    """Return a P a'. P and the result are symmetric, given by entries (1, 1), (1, 2), (2, 2)."""
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
    """SGD with momentum in torch's form: v = momentum v + g, then theta = theta - lr v.

    >>> spectrum = Spectrum(curvature=[1.0], noise=[0.0], second_moment=[1.0])
    >>> after = HeavyBall(momentum=0.5).advance(
    ...     spectrum, HeavyBall(momentum=0.5).start(spectrum), Phase(batch_size=8, lr=0.5, steps=2))
    >>> after.round(6).ravel().tolist()  # theta -> 0.5 -> -0.0, v -> 1.0 -> 1.0
    [0.0, 0.0, 1.0]

    Args:
        momentum: in [0, 1).

    Raises:
        ValueError: momentum outside [0, 1).
    """

    momentum: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(
                f"momentum lies in [0, 1), as in HeavyBall(momentum=0.9); got {self.momentum!r}."
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
            noise[[0, 2]] = np.maximum(noise[[0, 2]], 0.0)  # below zero by rounding alone
            after: Array = carried(power, moments) + spectrum.noise / phase.batch_size * noise
        return after

    def second_moment(self, moments: Array) -> Array:
        kept: Array = moments[0]
        return kept

    def max_lr(self, spectrum: Spectrum) -> float:
        return (1.0 + self.momentum) * spectrum.max_lr
