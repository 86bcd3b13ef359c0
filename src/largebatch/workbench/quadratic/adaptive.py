"""Two stand-ins for optimizers that divide the gradient: by direction, and by its whole norm.

    Preconditioned   theta' = theta - lr g / d,   d = lambda^exponent
    Normalised       theta' = theta - lr g / sqrt(E |g|^2),   E |g|^2 = sqnorm + variance / b

Neither is Adam: the first has a fixed scale, the second takes the expected norm for the norm (a
mean field). Where noise dominates E |g|^2 = variance / b, so that rates act as lr sqrt(b).
Derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from largebatch.workbench.quadratic.dynamics import Dynamics, Phase
from largebatch.workbench.quadratic.sgd import SGD
from largebatch.workbench.quadratic.spectrum import Array, Spectrum


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioned:
    """Every direction's gradient divided by a power of its curvature, whatever the optimizer.

    >>> spectrum = Spectrum(curvature=[4.0, 0.01], noise=[1.0, 1.0], second_moment=[1.0, 1.0])
    >>> Preconditioned(exponent=1.0).max_lr(spectrum)
    2.0

    Args:
        dynamics: what moves the weights.
        exponent: of the curvature in the scale; 0.5 for a gradient whose variance is in proportion
            to it, 1 for Newton's step, 0 changes nothing.

    Raises:
        ValueError: an exponent that is not finite.
    """

    dynamics: Dynamics = field(default_factory=SGD)
    exponent: float = 0.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.exponent):
            raise ValueError(f"exponent is a number, as in exponent=0.5; got {self.exponent!r}.")

    def start(self, spectrum: Spectrum) -> Array:
        return self.dynamics.start(spectrum)

    def advance(self, spectrum: Spectrum, moments: Array, phase: Phase) -> Array:
        return self.dynamics.advance(self._as_seen(spectrum), moments, phase)

    def second_moment(self, moments: Array) -> Array:
        return self.dynamics.second_moment(moments)

    def max_lr(self, spectrum: Spectrum) -> float:
        return self.dynamics.max_lr(self._as_seen(spectrum))

    def _as_seen(self, spectrum: Spectrum) -> Spectrum:
        scale = spectrum.curvature**self.exponent
        return Spectrum(
            curvature=spectrum.curvature / scale,
            noise=spectrum.noise / scale**2,
            second_moment=spectrum.second_moment,
            weight=spectrum.weight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    """SGD on the gradient over the root of its expected square, which moves along the run.

    There is no closed form. A phase is cut into pieces of steps at one norm, that of the piece's
    middle: a piece grows while the norm hardly moves, is taken again at half its length where its
    square moves by more than `tolerance`, and is one exact step at the least.

    >>> spectrum = Spectrum(curvature=[1.0], noise=[0.0], second_moment=[1.0])
    >>> Normalised().advance(spectrum, Normalised().start(spectrum),
    ...     Phase(batch_size=8, lr=0.5, steps=1))
    array([[0.25]])

    Args:
        tolerance: largest change of ln E |g|^2 in a piece of several steps, above 0.

    Raises:
        ValueError: a tolerance that is not above 0.
    """

    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance is above 0, as in tolerance=.05; got {self.tolerance!r}.")

    def start(self, spectrum: Spectrum) -> Array:
        return SGD().start(spectrum)

    def advance(self, spectrum: Spectrum, moments: Array, phase: Phase) -> Array:
        left, length = phase.steps, 1.0
        now = _log_square(spectrum, moments, phase.batch_size)
        while left > 0.0 and math.isfinite(now):
            length = min(length, left)
            after = _piece(spectrum, moments, phase, length, now)
            reached = _log_square(spectrum, after, phase.batch_size)
            change = abs(reached - now)
            if length > 1.0 and not change <= self.tolerance:
                length = max(1.0, length // 2.0)
                continue
            moments, now, left = after, reached, left - length
            length *= 2.0 if change <= 0.25 * self.tolerance else 1.0
        return moments

    def second_moment(self, moments: Array) -> Array:
        return SGD().second_moment(moments)

    def max_lr(self, spectrum: Spectrum) -> float:
        return math.inf


def _piece(spectrum: Spectrum, moments: Array, phase: Phase, length: float, now: float) -> Array:
    """So many steps at one norm: of the start for a single step, else of the middle."""
    square = now
    if length > 1.0:
        half = _steps(spectrum, moments, phase, 0.5 * length, now)
        square = _log_square(spectrum, half, phase.batch_size)
    return _steps(spectrum, moments, phase, length, square)


def _steps(spectrum: Spectrum, moments: Array, phase: Phase, steps: float, square: float) -> Array:
    lr = phase.lr * math.exp(-0.5 * square)
    return SGD().advance(spectrum, moments, Phase(batch_size=phase.batch_size, lr=lr, steps=steps))


def _log_square(spectrum: Spectrum, moments: Array, batch_size: float) -> float:
    """ln E |g|^2 of a batch; -inf at the minimum without noise, where nothing moves any more."""
    sqnorm = float(spectrum.weight @ (spectrum.curvature**2 * moments[0]))
    return float(np.log(sqnorm + spectrum.variance / batch_size)) if sqnorm > 0.0 else -math.inf
