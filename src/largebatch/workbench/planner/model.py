"""Model a run by a noisy quadratic that has the given gradient noise scale.

    curvature 1 / i,   start i^-s,   noise proportional to the curvature,   i = 1 ... directions

Without noise, the loss falls as steps^-s. The noise level is set so that the first steps have the
given noise scale. The base learning rate is the best one for the base batch size with a cosine
schedule over the budget. The largest stable factor keeps the learning rate at 0.9 times the
stability limit. If two noise scales are given, the exponent s is chosen so that a run at the base
batch size and base learning rate ends with the second noise scale. The properties of the model are
this library's own choice. The model serves to rank schedules and is not fitted to a real run.
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
"""Batch size in samples, factor on the base learning rate, and number of steps, all as floats."""

LEAST_DIRECTIONS = 2000
"""Smallest number of directions of the quadratic."""

STABLE = 0.9
"""Largest learning rate that counts as stable, as a fraction of the stability limit."""

LEAST_EXPONENT, LARGEST_EXPONENT = 0.05, 3.0
"""Range in which the exponent s of the loss is searched."""

COARSE, FINE = 250, 2000
"""Number of bins of the spectrum during a search, and for the numbers that are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticModel:
    """Hold a noisy quadratic and the learning rate that corresponds to the base learning rate.

    Args:
        spectrum: Curvature, noise and start of the quadratic.
        lr: Learning rate in the quadratic for a factor of 1 on the base learning rate.
        exponent: Exponent s of the loss without noise; None if the quadratic was fitted to a
            record.
        seen: Largest factor on the base learning rate in the record, at least 1; None without a
            record.
    """

    spectrum: Spectrum
    lr: float
    exponent: float | None = None
    seen: float | None = None

    def forecast(self, stages: Sequence[Stage]) -> Forecast:
        """Return the forecast loss and noise scale after each stage of a schedule."""
        return forecast(
            self.spectrum,
            [Phase(batch_size=b, lr=self.lr * f, steps=k) for b, f, k in stages],
        )

    def final_loss(self, stages: Sequence[Stage]) -> float:
        """Return the loss at the end of a schedule, or `inf` if the run diverges.

        The result equals the last loss of `forecast` and takes less time to compute than
        `forecast`.
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
        """Return the largest stable factor on the base learning rate, at least 1."""
        return max(STABLE * self.spectrum.max_lr / self.lr, 1.0)


def model_of(
    noise_scales: Sequence[float],
    *,
    budget: int,
    base_batch_size: int,
    exponent: float = 0.5,
    bins: int = FINE,
) -> QuadraticModel:
    """Return the model of a run with one or two given noise scales.

    >>> model = model_of([1000.0], budget=10**6, base_batch_size=64)
    >>> round(model.spectrum.noise_scale)
    1000

    Args:
        noise_scales: Gradient noise scale of the first steps and, optionally, gradient noise scale
            of the last steps, in samples, above 0.
        budget: Number of training samples of the run.
        base_batch_size: Base batch size B0, in samples.
        exponent: Exponent s of the loss without noise, above 0; ignored if two noise scales are
            given.
        bins: Largest number of bins of the spectrum.

    Raises:
        ValueError: A number is out of range, or no exponent s gives the second noise scale.
    """
    if not 0.0 < exponent <= LARGEST_EXPONENT:
        raise ValueError(
            f"exponent={exponent!r} was given, but the exponent of the loss must be above 0 and at "
            f"most {LARGEST_EXPONENT:g}. Pass exponent=0.5"
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
            f"The noise scales {noise_scales[0]:.4g} (first steps) and {wanted:.4g} (last steps) "
            f"were given. In this model, a run that starts at the noise scale "
            f"{noise_scales[0]:.4g} ends at a noise scale between {least:.4g} and {most:.4g}. Pass "
            f"only the first noise scale: "
            f"noise_scales=[{noise_scales[0]:g}]"
        )
    for _ in range(16):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if last(middle) < wanted else (low, middle)
    return at(low, bins)


def tuned_lr(spectrum: Spectrum, *, steps: int, batch: float) -> float:
    """Return the learning rate with the lowest loss at the end of a cosine schedule.

    Ten learning rates per power of ten are tried, starting at the largest stable one. A parabola
    through the three best points refines the result.

    Args:
        spectrum: Curvature, noise and start of the quadratic.
        steps: Number of steps of the schedule, at least 1.
        batch: Batch size in samples.
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
