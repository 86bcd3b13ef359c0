"""Model an optimizer that divides the gradient by a scale per direction, and one that divides by
the norm.

    Preconditioned   theta' = theta - lr * g / d,   d = lambda^exponent
    Normalised       theta' = theta - lr * g / sqrt(E |g|^2),   E |g|^2 = sqnorm + variance / b

`Preconditioned` and `Normalised` are models, and neither of them is Adam. `Preconditioned` uses a
constant scale for each direction. `Normalised` divides by the expected norm instead of the actual
norm (a mean-field approximation). If noise dominates, E |g|^2 = variance / b, and the learning rate
acts like lr * sqrt(b) in plain SGD. The formulas in this file are this library's own derivation.
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
    """Divide the gradient of every direction by a power of its curvature before the optimizer step.

    >>> spectrum = Spectrum(curvature=[4.0, 0.01], noise=[1.0, 1.0], second_moment=[1.0, 1.0])
    >>> Preconditioned(exponent=1.0).max_lr(spectrum)
    2.0

    Args:
        dynamics: Optimizer that moves the weights.
        exponent: Exponent of the curvature in the divisor. Use 0.5 if the gradient's variance is
            proportional to the curvature, and 1 for Newton's step. With exponent 0, the gradient is
            not changed.

    Raises:
        ValueError: The exponent is not finite.
    """

    dynamics: Dynamics = field(default_factory=SGD)
    exponent: float = 0.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.exponent):
            raise ValueError(
                f"exponent={self.exponent!r} was given, but the exponent must be a finite number. "
                "Pass exponent=0.5."
            )

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
    """Divide the gradient by its expected norm before each SGD step.

    The expected norm changes along the run, so the moments have no closed form. A phase is divided
    into sections, and each section uses one norm, which is computed at the middle of the section.
    If the norm hardly changes within a section, the next section has twice the length. If ln E
    |g|^2 changes by more than `tolerance` within a section, the section is repeated with half its
    length. The shortest section is one step, whose norm is computed at its start, so the step is
    exact.

    >>> spectrum = Spectrum(curvature=[1.0], noise=[0.0], second_moment=[1.0])
    >>> Normalised().advance(spectrum, Normalised().start(spectrum),
    ...     Phase(batch_size=8, lr=0.5, steps=1))
    array([[0.25]])

    Args:
        tolerance: Largest change of ln E |g|^2 in a section of several steps, above 0.

    Raises:
        ValueError: The tolerance is not above 0.
    """

    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.tolerance < math.inf:
            raise ValueError(
                f"tolerance={self.tolerance!r} was given, but the tolerance must be finite and "
                "above 0. Pass tolerance=0.05."
            )

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
    """Return the moments after a section of `length` steps that uses one norm.

    The norm is computed at the middle of the section, or at the start of a single step.
    """
    square = now
    if length > 1.0:
        half = _steps(spectrum, moments, phase, 0.5 * length, now)
        square = _log_square(spectrum, half, phase.batch_size)
    return _steps(spectrum, moments, phase, length, square)


def _steps(spectrum: Spectrum, moments: Array, phase: Phase, steps: float, square: float) -> Array:
    lr = phase.lr * math.exp(-0.5 * square)
    return SGD().advance(spectrum, moments, Phase(batch_size=phase.batch_size, lr=lr, steps=steps))


def _log_square(spectrum: Spectrum, moments: Array, batch_size: float) -> float:
    """Return ln E |g|^2 of a batch, or -inf if the true gradient is 0."""
    sqnorm = float(spectrum.weight @ (spectrum.curvature**2 * moments[0]))
    return float(np.log(sqnorm + spectrum.variance / batch_size)) if sqnorm > 0.0 else -math.inf
