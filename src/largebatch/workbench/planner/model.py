"""The noisy quadratic that stands for a run of which a noise scale is known.

    curvature 1 / i,   start i^-s,   noise as the curvature,   i = 1 ... directions

Without noise its loss falls as steps^-s. The noise is as large as makes the noise scale of the
first steps the given one. The base rate is the best one for the base batch with a cosine over the
budget, as a tuned rate is; the largest stable factor on it leads to nine tenths of the limit.
Of two noise scales the second is that of the last steps of a run with the base batch and the base
rate, and gives s. All of this is a choice of ours: it ranks schedules and knows no real run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from largebatch.workbench.quadratic import Forecast, Phase, Spectrum, forecast
from largebatch.workbench.quadratic.sgd import decay

Stage: TypeAlias = tuple[float, float, float]
"""Batch in samples, factor on the base rate, steps; none of them has to be whole."""

LEAST_DIRECTIONS = 2000

STABLE = 0.9
"""The part of the stability limit that the largest stable factor on the rate leads to."""

LEAST_EXPONENT, LARGEST_EXPONENT = 0.05, 3.0
"""Of how the loss falls, where it is looked for."""

COARSE, FINE = 250, 2000
"""Bins where much is tried, and where a number is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticModel:
    """A quadratic, and the learning rate in it that corresponds to the base rate.

    Args:
        spectrum: the quadratic.
        lr: for a factor of 1.
        exponent: s; None where the quadratic was fitted to a record.
        seen: the largest factor in that record, at least 1; None without one.
    """

    spectrum: Spectrum
    lr: float
    exponent: float | None = None
    seen: float | None = None

    def forecast(self, stages: Sequence[Stage]) -> Forecast:
        """Return what a schedule comes to, stage by stage."""
        return forecast(
            self.spectrum,
            [Phase(batch_size=b, lr=self.lr * f, steps=k) for b, f, k in stages],
        )

    def final_loss(self, stages: Sequence[Stage]) -> float:
        """Return the loss at the end of a schedule, `inf` if the run diverges.

        The number is that of `forecast`, in less time: a search asks for thousands of them.
        """
        spectrum = self.spectrum
        moment = spectrum.second_moment
        with np.errstate(over="ignore", invalid="ignore"):
            for batch, factor, steps in stages:
                lr = self.lr * factor
                left, total = decay(lr * spectrum.curvature, steps)
                moment = left * moment + (lr * lr / batch) * spectrum.noise * total
            loss = spectrum.floor + 0.5 * float((spectrum.weight * spectrum.curvature) @ moment)
        return loss if math.isfinite(loss) else math.inf

    @property
    def max_lr(self) -> float:
        """The largest stable factor on the base rate, which is stable itself."""
        return max(STABLE * self.spectrum.max_lr / self.lr, 1.0)


def model_of(
    noise_scales: Sequence[float],
    *,
    budget: int,
    base_batch_size: int,
    exponent: float = 0.5,
    bins: int = FINE,
) -> QuadraticModel:
    """The model of one or two noise scales.

    >>> model = model_of([1000.0], budget=10**6, base_batch_size=64)
    >>> round(model.spectrum.noise_scale)
    1000

    Args:
        noise_scales: of the first steps, and maybe of the last ones, in samples, above 0.
        budget: in samples.
        base_batch_size: B0, in samples.
        exponent: s, above 0; of no use where two noise scales are given.
        bins: at most.

    Raises:
        ValueError: a number outside its range, or a second noise scale that no s leads to.
    """
    if not 0.0 < exponent <= LARGEST_EXPONENT:
        raise ValueError(
            f"exponent={exponent!r} was given, but the exponent of the loss is above 0 and at most "
            f"{LARGEST_EXPONENT:g}. Pass exponent=0.5"
        )
    steps = max(budget // base_batch_size, 1)

    def at(s: float, bins: int = COARSE) -> QuadraticModel:
        spectrum = _spectrum(s, noise_scales[0], directions=steps, bins=bins)
        rough = _spectrum(s, noise_scales[0], directions=steps, bins=COARSE)
        return QuadraticModel(
            spectrum=spectrum, lr=tuned_lr(rough, steps=steps, batch=base_batch_size), exponent=s
        )

    if len(noise_scales) == 1:
        return at(exponent, bins)

    def last(s: float) -> float:
        return at(s).forecast([(base_batch_size, 1.0, steps)]).noise_scale[-1]

    low, high = LEAST_EXPONENT, LARGEST_EXPONENT
    wanted, least, most = noise_scales[1], last(low), last(high)
    if not least <= wanted <= most:
        raise ValueError(
            f"From a noise scale of {noise_scales[0]:.4g} a run with the base batch and a constant "
            f"rate comes to one between {least:.4g} and {most:.4g} in this model, and not to "
            f"{wanted:.4g}. Pass the first one alone: noise_scales=[{noise_scales[0]:g}]"
        )
    for _ in range(16):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if last(middle) < wanted else (low, middle)
    return at(low, bins)


def tuned_lr(spectrum: Spectrum, *, steps: int, batch: float) -> float:
    """The rate with the least loss after a cosine over so many steps of one batch: of 10 for each
    power of 10 below the largest stable one, and between them by a parabola.

    Args:
        spectrum: the quadratic.
        steps: at least 1.
        batch: in samples.
    """
    parts = min(24, steps)
    shape = [0.5 * (1.0 + math.cos(math.pi * (i + 0.5) / parts)) for i in range(parts)]
    losses: list[float] = []
    for power in range(100):
        lr = STABLE * spectrum.max_lr * 10.0 ** (-power / 10)
        course = [Phase(batch_size=batch, lr=lr * f, steps=steps / parts) for f in shape]
        losses.append(forecast(spectrum, course).loss[-1])
        if losses[-1] > 2.0 * min(losses):
            break
    at = float(losses.index(min(losses)))
    if 0 < at < len(losses) - 1:
        before, here, after = losses[int(at) - 1 : int(at) + 2]
        at += 0.5 * (before - after) / (before - 2.0 * here + after)
    return STABLE * spectrum.max_lr * math.pow(10.0, -at / 10)


def _spectrum(exponent: float, noise_scale: float, *, directions: int, bins: int) -> Spectrum:
    bare = Spectrum.power_law(
        max(LEAST_DIRECTIONS, directions),
        curvature_exponent=1.0,
        start_exponent=exponent,
        bins=bins,
    )
    return Spectrum(
        curvature=bare.curvature,
        noise=bare.noise * (noise_scale / bare.noise_scale),
        second_moment=bare.second_moment,
        weight=bare.weight,
    )
