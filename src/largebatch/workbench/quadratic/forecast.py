"""A schedule on a noisy quadratic: what it is expected to reach, phase by phase."""

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
    """Expected values at the end of each phase, in their order.

    Args:
        loss: `inf` from the phase on in which the run overflowed.
        sqnorm: squared norm of the true gradient.
        noise_scale: variance / sqnorm, in samples; 0 where the run has diverged.
        steps, samples: from the start of the run.
    """

    loss: tuple[float, ...]
    sqnorm: tuple[float, ...]
    noise_scale: tuple[float, ...]
    steps: tuple[float, ...]
    samples: tuple[float, ...]

    @property
    def diverged(self) -> bool:
        """Whether the loss has overflowed."""
        return math.isinf(self.loss[-1])


def forecast(
    spectrum: Spectrum, phases: Sequence[Phase], *, dynamics: Dynamics | None = None
) -> Forecast:
    """The expected course of a run that goes through `phases` from the start of `spectrum`.

    >>> spectrum = Spectrum.power_law(100, curvature_exponent=1.0, start_exponent=0.0)
    >>> stages = [Phase(batch_size=8 * 2**m, lr=0.5, steps=1000) for m in range(3)]
    >>> [round(loss, 3) for loss in forecast(spectrum, stages).loss]
    [0.089, 0.044, 0.022]

    The cost is that of a few passes over the bins for each phase, whatever its steps. A rate past
    the stability limit makes the loss grow, and infinite where it overflows; from there on all is
    infinite. Nothing is ever not a number.

    Args:
        spectrum: the loss, its noise and the start.
        phases: the schedule, at least one.
        dynamics: the optimizer; `SGD()` if left out.

    Raises:
        ValueError: no phase, or one that the optimizer refuses.
    """
    if not phases:
        raise ValueError("A schedule has a phase at least: [Phase(batch_size=8, lr=0.1, steps=9)].")
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
    """E theta^2 at the end of each phase; all infinite from the one on that overflowed."""
    moments = dynamics.start(spectrum)
    reached: list[Array] = []
    for phase in phases:
        moments = dynamics.advance(spectrum, moments, phase)
        if not np.isfinite(moments).all():
            never = np.full(spectrum.curvature.shape, math.inf)
            return reached + [never] * (len(phases) - len(reached))
        reached.append(dynamics.second_moment(moments))
    return reached
