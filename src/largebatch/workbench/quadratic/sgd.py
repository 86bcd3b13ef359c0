"""Model SGD on a noisy quadratic, with a closed form for any number of equal steps.

    1 step     e' = (1 - lr * lambda)^2 * e + lr^2 * c / b
    K steps    e_K = a^K * e + (lr^2 * c / b) * (1 - a^K) / (1 - a),   a = (1 - lr * lambda)^2
    K -> inf   e = lr * c / (b * lambda * (2 - lr * lambda)),   lr * lambda < 2

The formulas are exact for independent noise whose variance does not depend on the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from largebatch.workbench.quadratic.dynamics import Phase
from largebatch.workbench.quadratic.spectrum import Array, Spectrum


def decay(h: Array, steps: float | Array) -> tuple[Array, Array]:
    """Return a^K and the sum 1 + a + ... + a^(K-1) for a = (1 - h)^2.

    The two results keep their precision if h is near 0 or near 2.

    >>> [part.tolist() for part in decay(np.array([0.5, 2.0]), 2)]
    [[0.0625, 1.0], [1.25, 2.0]]

    Args:
        h: Learning rate times curvature, [D], at least 0.
        steps: Number of steps K, above 0 and not necessarily whole; one number, or one for each h.
    """
    # |1 - h| = 1 + d. Computing with d avoids the rounding error of 1 - h.
    d = np.where(h <= 1.0, -h, h - 2.0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        exponent = 2.0 * steps * np.log1p(d)
        total = np.where(d == 0.0, steps, np.expm1(exponent) / (d * (2.0 + d)))
        return np.exp(exponent), total


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """Model plain stochastic gradient descent; the number of steps need not be whole.

    >>> spectrum = Spectrum(curvature=[1.0], noise=[0.0], second_moment=[1.0])
    >>> SGD().advance(spectrum, SGD().start(spectrum), Phase(batch_size=8, lr=0.5, steps=2))
    array([[0.0625]])
    """

    def start(self, spectrum: Spectrum) -> Array:
        return spectrum.second_moment[None]

    def advance(self, spectrum: Spectrum, moments: Array, phase: Phase) -> Array:
        left, total = decay(phase.lr * spectrum.curvature, phase.steps)
        added = phase.lr**2 / phase.batch_size * spectrum.noise
        with np.errstate(over="ignore", invalid="ignore"):
            after: Array = left * moments + added * total
        return after

    def second_moment(self, moments: Array) -> Array:
        kept: Array = moments[0]
        return kept

    def max_lr(self, spectrum: Spectrum) -> float:
        return spectrum.max_lr
