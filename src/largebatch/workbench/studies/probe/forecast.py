"""What the noise of a whole run says about larger batches: pure formulas.

In a piece of the run with the noise scale n, the share s = b / (n + b) of the base batch's squared
gradient is signal, the rest is noise. One step of AdaScale at the scale S is worth

    r = S (n + b) / (n + S b) = S / (1 + (S - 1) s)    steps of the base batch (the gain),

so T base steps take the integral of 1 / r over the base steps, which is linear in s:

    steps = T (1 / S + (1 - 1 / S) mean(s))
    mean gain = T / steps = S / (1 + (S - 1) mean(s))

with mean(s) over the base steps, each counting alike. So one number counts for a whole run in which
the noise scale moves, at every S: the noise scale b (1 - mean(s)) / mean(s), whose gain is the mean
gain.

Johnson et al.: AdaScale SGD, 2020, arXiv 2007.05105, for the gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import (
    LEAST_BOUND,
    NoiseEstimate,
    NotEnough,
    Pairs,
    Piece,
    along,
    estimate_noise,
)

PIECES = 8
"""Of the run. More follow the noise scale more closely, and each is known less well."""

LAST = 0.75
"""What was not probed of a run is taken to be as the probe from this fraction of its steps on."""


OVERSCALED = 10
"""See `overscaled`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise scale, or why it is unknown: one of the two is there.

    >>> print(Noise(missing=NotEnough(reason="5 measured steps", needed="at least 16")))
    not enough signal yet: 5 measured steps; needed: at least 16
    """

    estimate: NoiseEstimate | None = None
    missing: NotEnough | None = None

    @classmethod
    def of(cls, known: NoiseEstimate | NotEnough) -> Noise:
        """From what `estimate_noise` returns."""
        if isinstance(known, NotEnough):
            return cls(missing=known)
        return cls(estimate=known)

    def __str__(self) -> str:
        return str(self.estimate or self.missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A piece of the run.

    Args:
        start, stop: its steps, without `stop`.
        loss: mean training loss.
        noise: its noise scale in samples.
        signal: share of the base batch's squared gradient that is signal, in [0, 1].
    """

    start: int
    stop: int
    loss: float
    noise: Noise
    signal: Range


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What AdaScale at one scale should need for the whole run.

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
    """The share of the base batch's squared gradient that is signal: b / (n + b).

    >>> signal_share(noise_scale=48, base_batch_size=16)
    0.25
    """
    return base_batch_size / (noise_scale + base_batch_size)


def noise_scale_of(*, signal: float, base_batch_size: float) -> float:
    """The noise scale in samples at which the signal has this share; `inf` without signal.

    >>> noise_scale_of(signal=0.25, base_batch_size=16)
    48.0
    """
    return base_batch_size * (1.0 - signal) / signal if signal > 0.0 else math.inf


def mean_gain(*, signal: float, scale: float) -> float:
    """How many base steps a step of AdaScale is worth in the mean over a run.

    >>> mean_gain(signal=0.25, scale=5)
    2.5

    Args:
        signal: mean over the base steps of the signal's share, in [0, 1].
        scale: S, at least 1.
    """
    return scale / (1.0 + (scale - 1.0) * signal)


def weights(ends: Sequence[tuple[int, int]], *, run_steps: int) -> list[float]:
    """What part of the run's base steps each piece stands for; the sum is 1.

    What was not probed is shared by the pieces of the probe's last quarter.

    >>> weights([(0, 30), (30, 60), (60, 90), (90, 120)], run_steps=240)
    [0.125, 0.125, 0.125, 0.625]

    Args:
        ends: (start, stop) of the pieces, in steps.
        run_steps: T, at least the steps probed.
    """
    steps = ends[-1][1]
    late = [stop - start if start >= LAST * steps else 0 for start, stop in ends]
    late[-1] = ends[-1][1] - ends[-1][0]
    rest = (run_steps - steps) / sum(late)
    return [
        (stop - start + rest * more) / run_steps
        for (start, stop), more in zip(ends, late, strict=True)
    ]


def weighted_mean(parts: Sequence[Range], weights: Sequence[float]) -> Range:
    """The mean of independent estimates, the ends of their intervals added in squares:
    low = mean - sqrt(sum (weight (value - low))^2), and so upwards.

    >>> half = Range(value=0.5, low=0.1, high=0.7)
    >>> exact = Range(value=0.3, low=0.3, high=0.3)
    >>> print(weighted_mean([half, exact], [0.5, 0.5]))
    0.4 [0.2, 0.5]
    """
    pairs = list(zip(parts, weights, strict=True))
    value = sum(weight * part.value for part, weight in pairs)
    down = math.hypot(*(weight * (part.value - part.low) for part, weight in pairs))
    up = math.hypot(*(weight * (part.high - part.value) for part, weight in pairs))
    return Range(value=value, low=value - down, high=value + up)


def stretches(
    series: Pairs, losses: Sequence[float], *, base_batch_size: int, seed: int = 0
) -> tuple[Stretch, ...]:
    """The pieces of a run, with their noise scales and shares of signal.

    Args:
        series: (variance, sqnorm) of each step, as for `estimate_noise`.
        losses: of the same steps.
        base_batch_size: b, in samples.
        seed: of the bootstrap.
    """
    pairs = np.asarray(series, dtype=np.float64)
    return tuple(
        Stretch(
            start=piece.start,
            stop=piece.stop,
            loss=float(np.mean(losses[piece.start : piece.stop])),
            noise=Noise.of(piece.noise),
            signal=_signal(piece, pairs[piece.start : piece.stop], base_batch_size),
        )
        for piece in along(series, PIECES, seed=seed)
    )


def noise_of_run(
    pieces: Sequence[Stretch], *, base_batch_size: int, run_steps: int, pooled: Noise
) -> Noise:
    """The noise scale that counts for the whole run (see the module), or why it is unknown.

    Its `variance` and `sqnorm` are in units of the base batch's squared gradient, as every step
    counts alike.

    Args:
        pieces: of the probe.
        base_batch_size: b, in samples.
        run_steps: base steps of the whole run, at least those probed.
        pooled: the estimate over all steps, whose reason is given where no piece tells anything.
    """
    if all(piece.noise.estimate is None for piece in pieces):
        return Noise(missing=pooled.missing or pieces[-1].noise.missing)
    shares = weights([(p.start, p.stop) for p in pieces], run_steps=run_steps)
    mean = weighted_mean([p.signal for p in pieces], shares)
    signal = Range(value=mean.value, low=max(mean.low, 0.0), high=min(mean.high, 1.0))
    value, low, high = (
        noise_scale_of(signal=share, base_batch_size=base_batch_size)
        for share in (signal.value, signal.high, signal.low)
    )
    steps = pieces[-1].stop
    if low < LEAST_BOUND and math.isinf(high):
        return Noise(
            missing=NotEnough(
                reason=f"the gradient is lost in its noise after {steps} steps",
                needed="more steps, or more samples a step",
            )
        )
    return Noise(
        estimate=NoiseEstimate(
            noise_scale=value,
            low=low,
            high=high,
            steps=steps,
            variance=base_batch_size * (1.0 - signal.value),
            sqnorm=signal.value,
        )
    )


def noise_of_series(
    series: Pairs, losses: Sequence[float], *, base_batch_size: int, run_steps: int, seed: int = 0
) -> tuple[Noise, Noise, tuple[Stretch, ...]]:
    """(noise scale of the whole run, of all steps pooled, the pieces) of one series."""
    pooled = Noise.of(estimate_noise(series, seed=seed))
    pieces = stretches(series, losses, base_batch_size=base_batch_size, seed=seed)
    whole = noise_of_run(
        pieces, base_batch_size=base_batch_size, run_steps=run_steps, pooled=pooled
    )
    return whole, pooled, pieces


def overscaled(series: Sequence[tuple[float, float]], *, batch_size: int, parameters: int) -> bool:
    """Whether Adam's denominators are too small for what they divide in these steps.

    Adam divides each number of a gradient by the root of its average square, so the squared norm of
    what comes out is about the count of numbers. It is beyond all bounds where a number is rarely
    used, such as a row of an embedding: divided by almost nothing when its turn comes, it hides the
    noise of all others. The limit is OVERSCALED times the count.

    >>> overscaled([(16.0, 3.0)], batch_size=16, parameters=4)
    False
    >>> overscaled([(16.0, 3.0), (1e6, 3.0)], batch_size=16, parameters=4)
    True

    Args:
        series: (variance, sqnorm) of the gradient as Adam scales it.
        batch_size: of one step, in samples.
        parameters: numbers in the gradient.
    """
    squares = [variance / batch_size + sqnorm for variance, sqnorm in series]
    return bool(squares) and sum(squares) / len(squares) > OVERSCALED * parameters


def forecast(noise: NoiseEstimate, *, base_batch_size: int, run_steps: int, scale: int) -> Forecast:
    """Steps and samples of AdaScale at this scale over the whole run.

    >>> noise = NoiseEstimate(
    ...     noise_scale=48, low=16, high=112, steps=400, variance=12, sqnorm=0.25)
    >>> forecast(noise, base_batch_size=16, run_steps=1000, scale=5).steps
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
    return Forecast(
        scale=scale,
        batch_size=batch,
        mean_gain=gains,
        steps=steps,
        samples=Range(value=batch * steps.value, low=batch * steps.low, high=batch * steps.high),
    )


def _signal(piece: Piece, pairs: np.ndarray, base_batch_size: int) -> Range:
    if isinstance(piece.noise, NoiseEstimate):
        value, low, high = (
            signal_share(noise_scale=n, base_batch_size=base_batch_size)
            for n in (piece.noise.noise_scale, piece.noise.high, piece.noise.low)
        )
        return Range(value=value, low=low, high=high)
    variance, sqnorm = pairs.mean(axis=0) if len(pairs) else (0.0, 0.0)
    noise, signal = max(variance, 0.0) / base_batch_size, max(sqnorm, 0.0)
    value = float(signal / (signal + noise)) if signal + noise > 0.0 else 0.0
    return Range(value=value, low=0.0, high=1.0)
