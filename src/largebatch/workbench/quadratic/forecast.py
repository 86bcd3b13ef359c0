"""Forecast the expected loss of a schedule on a noisy quadratic at the end of each phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.core.measurement import noise_scale
from largebatch.workbench.quadratic.dynamics import Dynamics, Phase
from largebatch.workbench.quadratic.sgd import SGD
from largebatch.workbench.quadratic.spectrum import Array, Spectrum


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Hold the expected values at the end of each phase.

    >>> spectrum = Spectrum(curvature=[1.0], noise=[0.0], second_moment=[1.0])
    >>> found = forecast(spectrum, [Phase(batch_size=8, lr=0.5, steps=2)])
    >>> found.loss, found.samples
    ((0.03125,), (16.0,))

    Args:
        loss: Expected loss. The loss is `inf` from the phase in which it overflowed.
        sqnorm: Expected squared norm of the true gradient.
        noise_scale: Noise scale variance / sqnorm, in samples. The noise scale is 0 if the run has
            diverged.
        steps: Number of steps since the start of the run.
        samples: Number of samples since the start of the run.
    """

    loss: tuple[float, ...]
    sqnorm: tuple[float, ...]
    noise_scale: tuple[float, ...]
    steps: tuple[float, ...]
    samples: tuple[float, ...]

    @property
    def diverged(self) -> bool:
        """Return whether the loss has overflowed at the end of the schedule."""
        return math.isinf(self.loss[-1])


def forecast(
    spectrum: Spectrum, phases: Sequence[Phase], *, dynamics: Dynamics | None = None
) -> Forecast:
    """Return the expected loss at the end of each phase of a run.

    >>> spectrum = Spectrum.power_law(100, curvature_exponent=1.0, start_exponent=0.0)
    >>> stages = [Phase(batch_size=8 * 2**m, lr=0.5, steps=1000) for m in range(3)]
    >>> [round(loss, 3) for loss in forecast(spectrum, stages).loss]
    [0.089, 0.044, 0.022]

    The computation time of a phase does not depend on its number of steps. If the learning rate is
    above the stability limit, the loss grows. If the loss overflows in a phase, the forecast loss
    is infinite in the same phase and in all later phases. The result is never NaN.

    Args:
        spectrum: Curvature, gradient noise and start of the run.
        phases: Phases of the schedule, at least one.
        dynamics: Optimizer model. The default optimizer model is `SGD()`.

    Raises:
        ValueError: No phase is given, or the optimizer model does not support a phase.
    """
    if not phases:
        raise ValueError(
            "phases is empty, but a schedule needs at least one phase. Pass "
            "phases=[Phase(batch_size=8, lr=0.1, steps=9)]."
        )
    followed = dynamics if dynamics is not None else SGD()
    reached = np.stack(_course(spectrum, phases, followed))
    weighed = spectrum.weight * spectrum.curvature
    with np.errstate(over="ignore"):
        losses = spectrum.floor + 0.5 * (reached @ weighed)
        sqnorms = reached @ (weighed * spectrum.curvature)
    variance = spectrum.variance
    return Forecast(
        loss=tuple(losses.tolist()),
        sqnorm=tuple(sqnorms.tolist()),
        noise_scale=tuple(noise_scale(variance=variance, sqnorm=s) for s in sqnorms.tolist()),
        steps=tuple(np.cumsum([float(phase.steps) for phase in phases]).tolist()),
        samples=tuple(np.cumsum([phase.samples for phase in phases]).tolist()),
    )


def _course(spectrum: Spectrum, phases: Sequence[Phase], dynamics: Dynamics) -> list[Array]:
    """Return E theta^2 at the end of each phase; infinite from the phase that overflowed."""
    moments = dynamics.start(spectrum)
    reached: list[Array] = []
    for phase in phases:
        moments = dynamics.advance(spectrum, moments, phase)
        if not np.isfinite(moments).all():
            never = np.full(spectrum.curvature.shape, math.inf)
            return reached + [never] * (len(phases) - len(reached))
        reached.append(dynamics.second_moment(moments))
    return reached
