"""The noise scale of a run, with an interval, or what is missing to tell it.

    noise scale = mean(variance) / mean(sqnorm), in samples

over a series of steps, each with the unbiased `variance` of one sample's gradient (tr Sigma) and
the unbiased `sqnorm` of the true gradient (|G|^2, maybe negative). The ratio of the means is taken,
never the mean of ratios, which is biased without bound where |G|^2 is small.

If the epochs of N samples are drawn without replacement, as loaders do, and G is the gradient of
these samples, the batch's squared norm is |G|^2 + variance (1 / B - 1 / N) in the mean. So the mean
`sqnorm` is |G|^2 - variance / N, which is below zero for a noise scale above N.

McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162,
section 2.2 and appendix A.1.
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
"""Fewer steps than two a block say nothing about how steps depend on one another."""

LEAST_NOISE = 1e-3
"""A noise scale below this many samples is the rounding of float32 squares, not noise."""

LEAST_BOUND = 1.0
"""An interval from below one sample to infinity excludes no batch size."""

BELOW_ZERO = "the squared norm is below zero by more than chance explains"
"""The reason why a noise scale is unknown if even an infinite one does not fit."""

SMALL_DATA = (
    "if a small data set is passed over many times, its size: "
    "lb.watch(..., dataset_size=len(dataset))"
)
"""What may be needed if the gradient is lost in its noise."""

Pairs = Sequence[tuple[float, float]] | Series


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseEstimate:
    """The noise scale of a series of steps.

    >>> print(NoiseEstimate(
    ...     noise_scale=1241.3, low=980.2, high=1612, steps=400, variance=1241.3, sqnorm=1.0))
    noise scale 1240 [980, 1610] samples (95 % interval, 400 steps)

    Args:
        noise_scale: variance / sqnorm in samples; `inf` where the sqnorm is not positive.
        low, high: ends of the interval in samples; `high` is `inf` where the data give none.
        steps: length of the series.
        variance, sqnorm: means over the series; `sqnorm` is that of the data set if its size was
            given.
        level: probability with which [low, high] covers the noise scale.
        dataset_size: samples of the data set whose gradient counts as the true one; None if it is
            that of fresh samples.
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
    """The noise scale of the steps from `start` up to, not including, `stop`."""

    start: int
    stop: int
    noise: NoiseEstimate | NotEnough


def estimate_noise(
    series: Pairs, *, dataset_size: int | None = None, seed: int = 0, level: float = 0.95
) -> NoiseEstimate | NotEnough:
    """The noise scale of a series of (variance, sqnorm), one pair a step, in the order of the run.

    `NotEnough` says which of four things is the case: fewer than MIN_STEPS steps; a variance that
    is zero up to rounding (LEAST_NOISE); an interval that excludes no batch size, from below
    LEAST_BOUND to infinity; a squared norm below zero by more than chance explains.

    >>> print(estimate_noise([(8.0, 2.0)] * 5))
    not enough signal yet: 5 measured steps; needed: at least 16
    >>> estimate_noise([(8.0, 2.0)] * 16).noise_scale
    4.0
    >>> estimate_noise([(8.0, 2.0)] * 16, dataset_size=8).noise_scale  # 8 / (2 + 8 / 8)
    2.6666666666666665

    Args:
        series: pairs [T, 2] of unbiased estimates, such as those of `GradientMoments`.
        dataset_size: samples N of a data set whose epochs are drawn without replacement. The noise
            scale is then that of the data set's gradient, with sqnorm + variance / N for the
            squared norm. It is approximate while the weights move within an epoch. None if samples
            are fresh or drawn with replacement.
        seed: of the bootstrap's generator.
        level: probability of covering the noise scale, in (0, 1).

    Raises:
        ValueError: not pairs, values that are not finite, fewer than two samples in the data set,
            or a level outside (0, 1).
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
            reason="the parts of a step have no variance between them",
            needed="parts with different samples (has every rank or micro-batch the same data?)",
        )
    low, high = ratio_interval(pairs[:, 0], pairs[:, 1], seed=seed, level=level)
    if math.isinf(low):
        return NotEnough(reason=BELOW_ZERO, needed=_what_explains(dataset_size))
    if low < LEAST_BOUND and math.isinf(high):
        return NotEnough(
            reason=f"the gradient is lost in its noise after {len(pairs)} steps",
            needed="more steps, or more samples a step"
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
    """Check the samples of a data set.

    Raises:
        ValueError: no whole number, or fewer than two samples.
    """
    if not is_count(size, least=2):
        raise ValueError(
            f"dataset_size={size!r} was given, but it is a whole number of samples, 2 or more. "
            "Pass dataset_size=len(dataset)."
        )


def along(
    series: Pairs,
    pieces: int = 8,
    *,
    dataset_size: int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Piece, ...]:
    """How the noise scale moves along a run: that of consecutive pieces of nearly equal length.

    There are fewer than `pieces` where a piece would have fewer than MIN_STEPS steps, and always
    one. Each interval covers by itself with probability `level`, not all of them at once.

    >>> [(p.start, p.stop) for p in along([(8.0, 2.0)] * 40)]
    [(0, 20), (20, 40)]

    Raises:
        ValueError: fewer than one piece, and as `estimate_noise`.
    """
    if pieces < 1:
        raise ValueError(f"pieces is a number of parts of the run, at least 1; got {pieces!r}.")
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
            "A series is one pair (variance, sqnorm) a step, for example "
            f"[(m.variance, m.sqnorm) for m in moments]; got the shape {pairs.shape}."
        )
    if not np.isfinite(pairs).all():
        steps = np.flatnonzero(~np.isfinite(pairs).all(axis=1))
        raise ValueError(
            f"{len(steps)} of {len(pairs)} steps are not finite, the first is step {steps[0]}; "
            "leave them out, as training skips them."
        )
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is a probability within (0, 1), such as 0.95; got {level!r}.")
    return pairs


def _what_explains(dataset_size: int | None) -> str:
    parts = "parts that are independent samples of the sizes given"
    if dataset_size is not None:
        return (
            f"a data set of {dataset_size} samples drawn without replacement, weights that hardly "
            f"move within an epoch, and {parts}"
        )
    return (
        "the size of the data set, if its epochs are drawn without replacement and it has fewer "
        "samples than the noise scale: lb.watch(..., dataset_size=len(dataset)), or "
        f"estimate_noise(series, dataset_size=len(dataset)). Otherwise {parts}"
    )


def _rounded(samples: float) -> str:
    """Three significant digits, without an exponent."""
    rounded = float(f"{samples:.3g}")
    return f"{rounded:.0f}" if rounded >= 100.0 else f"{rounded:g}"
