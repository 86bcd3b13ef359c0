"""Model the exponential average of the weights.

    x' = decay * x + (1 - decay) * theta'
    x_K = decay^K * x_0 + g_K * z_0 + noise
    g_2K = g_K * (decay^K + A^K),   g_(K+1) = decay * g_K + g_1 * A^K

Computing g_K takes a number of products that is proportional to the number of binary digits of K.
The module `heavy_ball` defines the matrix A, the vector z and the noise term. The formulas in this
file are this library's own derivation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from largebatch.workbench.quadratic.dynamics import Phase, whole_steps
from largebatch.workbench.quadratic.heavy_ball import HeavyBall, Matrix, Transition, carried
from largebatch.workbench.quadratic.sgd import SGD
from largebatch.workbench.quadratic.spectrum import Array, Spectrum


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragedWeights:
    """Compute the loss at the exponential average of the weights instead of at the weights.

    >>> spectrum = Spectrum(curvature=[1.0], noise=[0.0], second_moment=[1.0])
    >>> average = AveragedWeights(decay=0.5)
    >>> after = average.advance(
    ...     spectrum, average.start(spectrum), Phase(batch_size=8, lr=0.5, steps=1))
    >>> average.second_moment(after).tolist()  # (0.5 * 1 + 0.5 * 0.5)^2
    [0.5625]

    Args:
        decay: Decay factor of the average per step, in [0, 1).
        dynamics: Optimizer that moves the weights.

    Raises:
        ValueError: The decay is outside [0, 1).
    """

    decay: float
    dynamics: SGD | HeavyBall = field(default_factory=SGD)

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(
                f"decay={self.decay!r} was given, but the decay must be in [0, 1). Pass decay=0.99."
            )

    def start(self, spectrum: Spectrum) -> Array:
        e, zeros = spectrum.second_moment, np.zeros_like(spectrum.second_moment)
        return np.stack([e, zeros, zeros, e, zeros, e])

    def advance(self, spectrum: Spectrum, moments: Array, phase: Phase) -> Array:
        steps = whole_steps(phase, who="AveragedWeights")
        momentum = self.dynamics.momentum if isinstance(self.dynamics, HeavyBall) else 0.0
        step = Transition.of(spectrum, phase, momentum=momentum)
        with np.errstate(all="ignore"):
            final = _stationary(step, self.decay)
            power, row = step.power(steps), _row(step.matrix(), self.decay, steps)
            left = self.decay**steps
            noise = final - _carried(power, row, left, final)
            # Squares can be below 0 only because of rounding.
            noise[[0, 2, 5]] = np.maximum(noise[[0, 2, 5]], 0.0)
            after: Array = _carried(power, row, left, moments)
            after += spectrum.noise / phase.batch_size * noise
        return after

    def second_moment(self, moments: Array) -> Array:
        kept: Array = moments[5]
        return kept

    def max_lr(self, spectrum: Spectrum) -> float:
        return self.dynamics.max_lr(spectrum)


MatrixRow = tuple[Array, Array]


def _carried(power: Matrix, row: MatrixRow, left: float, moments: Array) -> Array:
    """Return the six moments after the steps, without the noise of the steps.

    The moments are the expectations of theta^2, theta * v, v^2, x * theta, x * v and x^2.
    """
    (a, b), (c, d) = power
    g, k = row
    x, y, z, xt, xv, xx = moments
    # t and v are the moments of x_K with z_0; the last line multiplies them by A^K.
    t, v = left * xt + g * x + k * y, left * xv + g * y + k * z
    mean = left * left * xx + 2.0 * left * (g * xt + k * xv) + g * g * x + 2 * g * k * y + k * k * z
    return np.concatenate([carried(power, moments[:3]), [t * a + v * b, t * c + v * d, mean]])


def _row(matrix: Matrix, decay: float, steps: int) -> MatrixRow:
    """Return g_K, computed from the binary digits of K."""
    (a, b), _ = matrix
    first = ((1.0 - decay) * a, (1.0 - decay) * b)
    row, power, left = first, matrix, decay
    for digit in bin(steps)[3:]:
        moved = _times(row, power)
        row = (left * row[0] + moved[0], left * row[1] + moved[1])
        power, left = (_times(power[0], power), _times(power[1], power)), left * left
        if digit == "1":
            moved = _times(first, power)
            row = (decay * row[0] + moved[0], decay * row[1] + moved[1])
            power = (_times(power[0], matrix), _times(power[1], matrix))
            left *= decay
    return row


def _times(row: MatrixRow, matrix: Matrix) -> MatrixRow:
    (a, b), (c, d) = matrix
    return row[0] * a + row[1] * c, row[0] * b + row[1] * d


def _stationary(step: Transition, decay: float) -> Array:
    """Return the six moments after infinitely many steps with noise of variance 1."""
    (a, b), (c, d) = step.matrix()
    x, y, z = step.stationary()
    s, t = (1.0 - decay) * x, (1.0 - decay) * y
    # (xt, xv) (I - decay A') = (s, t)
    size = (1.0 - decay * a) * (1.0 - decay * d) - decay * decay * b * c
    xt = (s * (1.0 - decay * d) + t * decay * b) / size
    xv = (s * decay * c + t * (1.0 - decay * a)) / size
    xx = (2.0 * decay * (a * xt + b * xv) + s) / (1.0 + decay)
    return np.stack([x, y, z, xt, xv, xx])
