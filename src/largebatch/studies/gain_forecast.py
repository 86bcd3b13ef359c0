"""Forecast the steps of larger batches from the noise scale of a whole run: pure formulas.

In a piece of the run with the noise scale n, the share s = b / (n + b) of the base batch's squared
gradient is signal, the rest is noise. One step of AdaScale at the scale S is worth

    r = S (n + b) / (n + S b) = S / (1 + (S - 1) s)    steps of the base batch (the gain),

so T base steps take the integral of 1 / r over the base steps, which is linear in s:

    steps = T (1 / S + (1 - 1 / S) mean(s))
    mean gain = T / steps = S / (1 + (S - 1) mean(s))

with mean(s) over the base steps, each counting alike.

Johnson et al.: AdaScale SGD, 2020, arXiv 2007.05105, for the gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NoiseEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class GainForecast:
    """The steps and samples that AdaScale should need for the whole run at one scale.

    Args:
        scale: S = batch / base batch.
        batch_size: in samples.
        mean_gain: base steps of the run / optimizer steps.
        steps: optimizer steps.
        samples: training samples.
    """

    scale: int
    batch_size: int
    mean_gain: Range
    steps: Range
    samples: Range


def signal_share(*, noise_scale: float, base_batch_size: float) -> float:
    """Return the share of the base batch's squared gradient that is signal, b / (n + b).

    >>> signal_share(noise_scale=48, base_batch_size=16)
    0.25
    """
    return base_batch_size / (noise_scale + base_batch_size)


def noise_scale_at(*, signal: float, base_batch_size: float) -> float:
    """Return the noise scale in samples at which the signal has this share; `inf` without signal.

    >>> noise_scale_at(signal=0.25, base_batch_size=16)
    48.0
    """
    return base_batch_size * (1.0 - signal) / signal if signal > 0.0 else math.inf


def mean_gain(*, signal: float, scale: float) -> float:
    """Return the mean number of base steps that one step of AdaScale is worth over a run.

    >>> mean_gain(signal=0.25, scale=5)
    2.5

    Args:
        signal: mean over the base steps of the signal's share, in [0, 1].
        scale: S, at least 1.
    """
    return scale / (1.0 + (scale - 1.0) * signal)


def forecast_gain(
    noise: NoiseEstimate, *, base_batch_size: int, run_steps: int, scale: int
) -> GainForecast:
    """Return the steps and samples of AdaScale at this scale over the whole run.

    >>> noise = NoiseEstimate(
    ...     noise_scale=48, low=16, high=112, steps=400, variance=12, sqnorm=0.25)
    >>> forecast_gain(noise, base_batch_size=16, run_steps=1000, scale=5).steps
    Range(value=400.0, low=300.0, high=600.0)

    Args:
        noise: of the whole run, as from `noise_of_run`.
        base_batch_size: b, in samples.
        run_steps: T, base steps of the run.
        scale: S.
    """
    shares = [
        signal_share(noise_scale=n, base_batch_size=base_batch_size)
        for n in (noise.noise_scale, noise.high, noise.low)
    ]
    gain, most, least = (mean_gain(signal=share, scale=scale) for share in shares)
    gains = Range(value=gain, low=least, high=most)
    steps = Range(value=run_steps / gain, low=run_steps / most, high=run_steps / least)
    batch = scale * base_batch_size
    return GainForecast(
        scale=scale,
        batch_size=batch,
        mean_gain=gains,
        steps=steps,
        samples=Range(value=batch * steps.value, low=batch * steps.low, high=batch * steps.high),
    )
