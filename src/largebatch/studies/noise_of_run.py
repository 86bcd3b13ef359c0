"""Compute the gradient noise scale that represents a whole run, from steps measured in several
pieces of the run.

In a piece of the run with the noise scale n, the share s = b / (n + b) of the base batch's squared
gradient is signal. The gain in this piece of the run is r = S * (n + b) / (n + S * b) =
S / (1 + (S - 1) * s). The number of steps for T base steps is therefore the integral of 1 / r over
the base steps, and 1 / r is linear in s:

    steps = T * (1 / S + (1 - 1 / S) * mean(s)),    where each base step has the same weight

If the noise scale changes along a run, one number therefore represents the whole run at every
scale: b * (1 - mean(s)) / mean(s). The gain that follows from this one noise scale is T / steps.
AdaScale itself decides from running averages, which lag behind the current noise; the module
`gain_forecast` simulates this lag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import (
    BELOW_ZERO,
    LEAST_BOUND,
    NoiseEstimate,
    NotEnough,
    Pairs,
    Piece,
    along,
    estimate_noise,
)
from largebatch.studies.signal_share import noise_scale_at, signal_share

PIECES = 8
"""Number of pieces into which the run is cut. With more pieces, the result follows a changing noise
scale more closely, but the estimate of each piece is less precise.
"""

LAST = 0.75
"""Fraction of the probe after which its steps represent the steps that were not probed."""

OVERSCALED = 10
"""Largest mean square of an element of Adam's preconditioned gradient that `overscaled` accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseOrReason:
    """Hold the noise scale, or the reason why it is unknown; exactly one of the two is set.

    >>> print(NoiseOrReason(missing=NotEnough(reason="5 measured steps", needed="at least 16")))
    not enough signal yet: 5 measured steps; needed: at least 16
    """

    estimate: NoiseEstimate | None = None
    missing: NotEnough | None = None

    @classmethod
    def of(cls, known: NoiseEstimate | NotEnough) -> NoiseOrReason:
        """Return the result of `estimate_noise` as a NoiseOrReason."""
        if isinstance(known, NotEnough):
            return cls(missing=known)
        return cls(estimate=known)

    def __str__(self) -> str:
        return str(self.estimate or self.missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Describe one piece of the run.

    Args:
        start, stop: First step of this piece of the run, and the step after its last step.
        loss: Mean training loss in this piece of the run.
        noise: Noise scale in this piece of the run, in samples.
        signal: Share of the base batch's squared gradient that is signal, in [0, 1].
    """

    start: int
    stop: int
    loss: float
    noise: NoiseOrReason
    signal: Range


def noise_of_series(
    series: Pairs,
    losses: Sequence[float],
    *,
    base_batch_size: int,
    run_steps: int,
    seed: int = 0,
    dataset_size: int | None = None,
) -> tuple[NoiseOrReason, NoiseOrReason, tuple[Stretch, ...]]:
    """Return (noise scale of the whole run, noise scale of all steps pooled, pieces) of one series.

    If the data set is smaller than its noise scale, the estimated squared norm is negative. If the
    squared norm is negative, the noise scale is computed for the mean gradient over the data set,
    over all steps.
    """
    found = estimate_noise(series, seed=seed)
    if isinstance(found, NotEnough) and found.reason == BELOW_ZERO and dataset_size is not None:
        found = estimate_noise(series, seed=seed, dataset_size=dataset_size)
    pooled = NoiseOrReason.of(found)
    pieces = stretches(series, losses, base_batch_size=base_batch_size, seed=seed)
    whole = noise_of_run(
        pieces, base_batch_size=base_batch_size, run_steps=run_steps, pooled=pooled
    )
    return whole, pooled, pieces


def noise_of_run(
    pieces: Sequence[Stretch], *, base_batch_size: int, run_steps: int, pooled: NoiseOrReason
) -> NoiseOrReason:
    """Return the noise scale that represents the whole run, or the reason why it is unknown.

    The fields `variance` and `sqnorm` of the result are in units of the base batch's squared
    gradient, because every step has the same weight.

    Args:
        pieces: Pieces of the probe.
        base_batch_size: Base batch size b in samples.
        run_steps: Base steps of the whole run, at least the probed steps.
        pooled: Estimate over all steps; if no piece has an estimate, the reason is taken from
            `pooled`.
    """
    if pooled.estimate is not None and pooled.estimate.dataset_size is not None:
        return pooled
    if all(piece.noise.estimate is None for piece in pieces):
        return NoiseOrReason(missing=pooled.missing or pieces[-1].noise.missing)
    shares = weights([(p.start, p.stop) for p in pieces], run_steps=run_steps)
    mean = weighted_mean([p.signal for p in pieces], shares)
    signal = Range(value=mean.value, low=max(mean.low, 0.0), high=min(mean.high, 1.0))
    value, low, high = (
        noise_scale_at(signal=share, base_batch_size=base_batch_size)
        for share in (signal.value, signal.high, signal.low)
    )
    steps = pieces[-1].stop
    if low < LEAST_BOUND and math.isinf(high):
        return NoiseOrReason(
            missing=NotEnough(
                reason=f"after {steps} steps, the gradient cannot be distinguished from its noise",
                needed="more steps, or more samples per step",
            )
        )
    return NoiseOrReason(
        estimate=NoiseEstimate(
            noise_scale=value,
            low=low,
            high=high,
            steps=steps,
            variance=base_batch_size * (1.0 - signal.value),
            sqnorm=signal.value,
        )
    )


def stretches(
    series: Pairs, losses: Sequence[float], *, base_batch_size: int, seed: int = 0
) -> tuple[Stretch, ...]:
    """Return the pieces of a run, with their noise scales and shares of signal.

    Args:
        series: Pair (variance, sqnorm) of each step, as for `estimate_noise`.
        losses: Training losses of the same steps.
        base_batch_size: Base batch size b in samples.
        seed: Seed of the bootstrap.
    """
    pairs = np.asarray(series, dtype=np.float64)
    return tuple(
        Stretch(
            start=piece.start,
            stop=piece.stop,
            loss=float(np.mean(losses[piece.start : piece.stop])),
            noise=NoiseOrReason.of(piece.noise),
            signal=_signal(piece, pairs[piece.start : piece.stop], base_batch_size),
        )
        for piece in along(series, PIECES, seed=seed)
    )


def weights(ends: Sequence[tuple[int, int]], *, run_steps: int) -> list[float]:
    """Return the fraction of the run's base steps that each piece represents; the sum is 1.

    The pieces in the last quarter of the probe also represent the steps that were not probed.

    >>> weights([(0, 30), (30, 60), (60, 90), (90, 120)], run_steps=240)
    [0.125, 0.125, 0.125, 0.625]

    Args:
        ends: Pair (start, stop) of each piece of the run, in steps.
        run_steps: Length T of the run in base steps, at least the probed steps.
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
    """Return the weighted mean of independent estimates, with its confidence interval.

    The squared distances of the lower bounds from the values are summed: low = mean -
    sqrt(sum((weight * (value - low))^2)). The upper bound is computed in the same way.

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


def overscaled(series: Sequence[tuple[float, float]], *, batch_size: int, parameters: int) -> bool:
    """Return whether Adam's denominators are too small for the gradients of these steps.

    Adam divides each element of a gradient by the square root of the element's running mean square,
    so the squared norm of the result is about the number of elements. The squared norm is much
    larger if an element is rarely used, such as a row of an embedding. When such an element is
    used, Adam divides it by almost zero, and the element hides the noise of all other elements.
    `overscaled` returns True if the mean squared norm exceeds OVERSCALED times the number of
    elements.

    >>> overscaled([(16.0, 3.0)], batch_size=16, parameters=4)
    False
    >>> overscaled([(16.0, 3.0), (1e6, 3.0)], batch_size=16, parameters=4)
    True

    Args:
        series: Pair (variance, sqnorm) of each step, of the preconditioned gradient (divided as
            Adam divides it).
        batch_size: Number of samples in one step.
        parameters: Number of elements of the gradient.
    """
    squares = [variance / batch_size + sqnorm for variance, sqnorm in series]
    return bool(squares) and sum(squares) / len(squares) > OVERSCALED * parameters


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
