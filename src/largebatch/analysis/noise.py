"""Estimate the gradient noise scale of a run with a confidence interval.

    noise scale = mean(variance) / mean(sqnorm), in samples

Both means are taken over a series of training steps. Each step has the unbiased `variance` of one
sample's gradient (tr Sigma) and the unbiased `sqnorm` of the true gradient (|G|^2, may be
negative). The ratio of the means is used, because the mean of the ratios has an unbounded bias if
|G|^2 is small.

Data loaders usually draw each epoch of N samples without replacement. Let G be the mean gradient of
the N samples in one epoch. Then the squared norm of a batch's gradient is |G|^2 + variance * (1 / B
- 1 / N) on average. So the mean `sqnorm` is |G|^2 - variance / N, which is negative if the noise
scale is above N.

Reference: McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch Training, 2018, arXiv
1812.06162, section 2.2 and appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from largebatch.analysis.bootstrap import BLOCKS, Series, ratio_interval
from largebatch.core.measurement import noise_scale
from largebatch.core.not_enough import NotEnough as NotEnough
from largebatch.core.number_checks import is_count

MIN_STEPS = 2 * BLOCKS
"""Fewest training steps for an estimate: two training steps per block of the bootstrap.

A shorter series does not show how strongly successive steps are correlated.
"""

LEAST_NOISE = 1e-3
"""Noise scale in samples below which the measured noise is a rounding error of float32 squares."""

LEAST_BOUND = 1.0
"""Smallest useful lower bound in samples. An interval from less than one sample to infinity
excludes no batch size.
"""

BELOW_ZERO = "the estimated squared norm is negative by more than chance explains"
"""Reason that is given if not even an infinite noise scale explains the measurements."""

SMALL_DATA = (
    "if training takes many epochs of a small data set, the size of the data set: "
    "lb.watch(..., dataset_size=len(dataset))"
)
"""Advice for a gradient that is too small compared with its noise."""

Pairs = Sequence[tuple[float, float]] | Series


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseEstimate:
    """Hold the gradient noise scale of a series of training steps, with its confidence interval.

    >>> print(NoiseEstimate(
    ...     noise_scale=1241.3, low=980.2, high=1612, steps=400, variance=1241.3, sqnorm=1.0))
    noise scale 1240 [980, 1610] samples (95 % interval, 400 steps)

    Args:
        noise_scale: Mean variance / mean sqnorm in samples, or `inf` if sqnorm is not positive.
        low: Lower bound of the interval in samples.
        high: Upper bound of the interval in samples, or `inf` if the data give no upper bound.
        steps: Number of training steps in the series.
        variance: Mean variance over the series.
        sqnorm: Mean sqnorm over the series. If `dataset_size` is set, the value is the squared norm
            of the data set's gradient.
        level: Probability that [low, high] contains the noise scale.
        dataset_size: Number of samples in the data set whose gradient counts as the true gradient,
            or None if the true gradient is the mean gradient of fresh samples.
    """

    noise_scale: float
    low: float
    high: float
    steps: int
    variance: float
    sqnorm: float
    level: float = 0.95
    dataset_size: int | None = None

    def __str__(self) -> str:
        size = self.dataset_size
        of = "" if size is None else f", of the data set of {size} samples"
        basis = f"({100 * self.level:g} % interval, {self.steps} steps{of})"
        low = _rounded(self.low)
        if math.isinf(self.high):
            return f"noise scale at least {low} samples {basis}"
        value, high = _rounded(self.noise_scale), _rounded(self.high)
        return f"noise scale {value} [{low}, {high}] samples {basis}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Hold the noise scale of the training steps from `start` (included) to `stop` (excluded).

    Args:
        start: Index of the first training step in the series.
        stop: Index after the last training step in the series.
        noise: Estimate of the noise scale, or the reason why there is no estimate.
    """

    start: int
    stop: int
    noise: NoiseEstimate | NotEnough


def estimate_noise(
    series: Pairs, *, dataset_size: int | None = None, seed: int = 0, level: float = 0.95
) -> NoiseEstimate | NotEnough:
    """Return the gradient noise scale of a series of (variance, sqnorm), one pair per step.

    The pairs are in the order of the run. The result is `NotEnough` in four cases: the series has
    fewer than MIN_STEPS steps; the variance is zero up to rounding (LEAST_NOISE); the interval
    extends from below LEAST_BOUND to infinity; or the estimated squared norm is negative by more
    than chance explains.

    >>> print(estimate_noise([(8.0, 2.0)] * 5))
    not enough signal yet: 5 measured steps; needed: at least 16
    >>> estimate_noise([(8.0, 2.0)] * 16).noise_scale
    4.0
    >>> estimate_noise([(8.0, 2.0)] * 16, dataset_size=8).noise_scale  # 8 / (2 + 8 / 8)
    2.6666666666666665

    Args:
        series: Pairs of unbiased estimates, of shape [T, 2], such as those of `GradientMoments`.
        dataset_size: Number of samples N of a data set whose epochs are drawn without replacement.
            If set, the result is the noise scale of the data set's own gradient, whose squared norm
            is sqnorm + variance / N. The noise scale of a data set is approximate while the weights
            change within an epoch. If None, samples are assumed to be fresh or drawn with
            replacement.
        seed: Seed of the bootstrap's random generator.
        level: Probability in (0, 1) that the interval contains the noise scale.

    Raises:
        ValueError: The series has no pairs, a value is not finite, the data set has fewer than two
            samples, or the level is outside (0, 1).
    """
    pairs = _checked(series, level=level)
    if dataset_size is not None:
        check_dataset_size(dataset_size)
        pairs = pairs + pairs[:, :1] * [0.0, 1.0 / dataset_size]
    if len(pairs) < MIN_STEPS:
        return NotEnough(reason=f"{len(pairs)} measured steps", needed=f"at least {MIN_STEPS}")
    variance, sqnorm = (float(mean) for mean in pairs.mean(axis=0))
    if variance <= LEAST_NOISE * max(sqnorm, 0.0):
        return NotEnough(
            reason="no variance between the gradients that were measured separately in a step",
            needed="micro-batches or ranks that have different samples",
        )
    low, high = ratio_interval(pairs[:, 0], pairs[:, 1], seed=seed, level=level)
    if math.isinf(low):
        return NotEnough(reason=BELOW_ZERO, needed=_what_explains(dataset_size))
    if low < LEAST_BOUND and math.isinf(high):
        return NotEnough(
            reason=f"after {len(pairs)} steps the noise still hides the gradient",
            needed="more steps, or more samples per step"
            + ("" if dataset_size is not None else f", or, {SMALL_DATA}"),
        )
    return NoiseEstimate(
        noise_scale=noise_scale(variance=variance, sqnorm=sqnorm),
        low=low,
        high=high,
        steps=len(pairs),
        variance=variance,
        sqnorm=sqnorm,
        level=level,
        dataset_size=dataset_size,
    )


def check_dataset_size(size: int) -> None:
    """Raise an error if the size of a data set is not a whole number of at least 2.

    Raises:
        ValueError: The size of the data set is not a whole number, or it is below 2.
    """
    if not is_count(size, least=2):
        raise ValueError(
            f"dataset_size={size!r} was given, but it must be a whole number of samples, at least "
            "2. Pass dataset_size=len(dataset)."
        )


def along(
    series: Pairs,
    pieces: int = 8,
    *,
    dataset_size: int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Piece, ...]:
    """Split a run into consecutive pieces, and return the noise scale of each piece.

    The pieces have nearly equal lengths. Each piece has at least MIN_STEPS steps, so a short run is
    divided into fewer than `pieces` pieces, but at least one piece. The probability `level` holds
    for each interval separately, not for all intervals jointly.

    >>> [(p.start, p.stop) for p in along([(8.0, 2.0)] * 40)]
    [(0, 20), (20, 40)]

    Args:
        series: Pairs (variance, sqnorm) of shape [T, 2].
        pieces: Largest number of pieces, at least 1.
        dataset_size: Number of samples in the data set, as in `estimate_noise`.
        seed: Seed of the bootstrap's random generator.
        level: Probability in (0, 1) that each interval contains the noise scale of its piece.

    Raises:
        ValueError: `pieces` is below 1, or `estimate_noise` rejects an argument.
    """
    if pieces < 1:
        raise ValueError(
            f"pieces={pieces!r} was given, but it must be a number of pieces, at least 1. Pass "
            "pieces=8."
        )
    pairs = _checked(series, level=level)
    count = max(1, min(pieces, len(pairs) // MIN_STEPS))
    cuts = [len(pairs) * i // count for i in range(count + 1)]
    return tuple(
        Piece(
            start=start,
            stop=stop,
            noise=estimate_noise(
                pairs[start:stop], dataset_size=dataset_size, seed=seed, level=level
            ),
        )
        for start, stop in pairwise(cuts)
    )


def _checked(series: Pairs, *, level: float) -> Series:
    pairs = np.asarray(series, dtype=np.float64) if len(series) else np.empty((0, 2))
    if pairs.shape[1:] != (2,):
        raise ValueError(
            f"A series of shape {pairs.shape} was given, but a series must have one pair "
            "(variance, sqnorm) per training step. Pass "
            "[(m.variance, m.sqnorm) for m in moments]."
        )
    if not np.isfinite(pairs).all():
        steps = np.flatnonzero(~np.isfinite(pairs).all(axis=1))
        raise ValueError(
            f"{len(steps)} of {len(pairs)} training steps have values that are not finite; the "
            f"first is step {steps[0]}. Leave these training steps out of the series."
        )
    if not 0.0 < level < 1.0:
        raise ValueError(
            f"level={level!r} was given, but it must be a probability in (0, 1). Pass level=0.95."
        )
    return pairs


def _what_explains(dataset_size: int | None) -> str:
    parts = "micro-batches of independent samples, with the sizes that were given"
    if dataset_size is not None:
        return (
            f"a data set of {dataset_size} samples drawn without replacement, weights that change "
            f"little within an epoch, and {parts}"
        )
    return (
        "the size of the data set, if its epochs are drawn without replacement and it has fewer "
        "samples than the noise scale: lb.watch(..., dataset_size=len(dataset)), or "
        f"estimate_noise(series, dataset_size=len(dataset)). Otherwise {parts}"
    )


def _rounded(samples: float) -> str:
    """Return a number of samples with three significant digits and without an exponent."""
    rounded = float(f"{samples:.3g}")
    return f"{rounded:.0f}" if rounded >= 100.0 else f"{rounded:g}"
