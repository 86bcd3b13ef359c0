"""Average the gradient's moments over training steps, and compute the gradient noise scale.

    noise scale = mean variance / mean squared norm,    in samples

Variance and squared norm are averaged separately, because the ratio from a single step is biased
and has heavy tails: McCandlish et al., An Empirical Model of Large-Batch Training, 2018, arXiv
1812.06162, appendix A.1.

The averages forget a fixed fraction of the past per base batch. In AdaScale's paper, a training
step at scale S forgets the fraction S / 1000 of the past. The forgotten fraction does not depend on
the number of micro-batches that were measured separately. Each measurement has a weight: the
inverse of the measurement's variance. If noise dominates, the squared norm from a batch of B
samples in k micro-batches has the variance (variance / B)^2 * k / (k - 1), up to a constant factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from largebatch.core.average import FEWEST_DEGREES, Average
from largebatch.core.codec import LATER
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.range import Range

Averaging = Literal["ema", "mean-then-ema"]

WINDOW = 100.0
"""Default length of the averages, in base batches."""

ROUNDING = 1e-12
"""Smallest variance, as a fraction of the squared norm, that is more than a rounding error."""

JUMP = 4.0
"""Largest measurement that is averaged unchanged, as a multiple of the typical measurement.

A measurement above `JUMP` times the typical measurement is scaled down. Without `JUMP`, one
training step with a very large gradient would outweigh all other training steps.
"""

MOST = 0.125
"""Largest fraction of the past that one measurement makes the averages forget.

Therefore the averages always hold at least eight measurements, even if batches are large and
measurements are rare.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingMoments:
    """Hold running averages of the gradient's variance and squared norm.

    The averages contain the variance of one sample's gradient and the squared norm of the true
    gradient. Variance and squared norm are independent of the batch size. Rough estimates from
    successive steps ("temporal") are forgotten at the first estimate from the gradients of a single
    step. Version 0.1 counted the window in gradients instead of base batches, so averages that
    version 0.1 saved are forgotten at the next measurement.

    Args:
        average: Running average of the pair (variance, squared norm).
        measured_at: Number of samples that the run had used after the last measured training step.
        temporal: Whether the averages contain temporal estimates.
        level: Typical variance in the last measured training steps, or typical squared norm if the
            gradients had no noise. New measurements are divided by the level. The level is 0 before
            the first measurement, and if measurements are averaged undivided.
    """

    average: Average = field(default_factory=Average)
    measured_at: int = 0
    temporal: bool = False
    level: float = field(default=0.0, metadata=LATER)

    @property
    def known(self) -> bool:
        """Return whether the averages contain a measurement that this version can use."""
        return self.average.count > 0 and not self.outdated

    @property
    def outdated(self) -> bool:
        """Return whether version 0.1 saved the averages. The next measurement restarts outdated
        averages.
        """
        return self.average.count > 0 and self.average.squares == 0.0

    def add(
        self,
        moments: GradientMoments,
        seen: Measurement,
        *,
        window: float = WINDOW,
        averaging: Averaging = "ema",
        relative: bool = True,
        clipped: tuple[float, float] | None = None,
    ) -> MovingMoments:
        """Return the averages after adding one more measurement.

        If `moments` are averages already (`AveragedMoments`), the result is `moments.past`. Moments
        that are not finite are ignored. Moments of a single micro-batch are ignored, too, because
        one gradient gives no variance.

        Args:
            moments: Moments of one training step.
            seen: Measurement of the same training step.
            window: Length of the averages in base batches, above 0. The past loses the fraction
                (base batches since the last measurement) / window of its weight, but at most the
                fraction MOST. The limit MOST does not apply if `relative` is False and the window
                is shorter than WINDOW.
            averaging: Kind of the average. "ema" is an exponential average. "mean-then-ema" is the
                plain mean until the window is full, and then an exponential average.
            relative: Whether to divide each measurement by the typical size of earlier
                measurements. If True, early and late training steps count equally even if gradient
                and noise shrink together, as in most runs. If False, training steps with large
                gradients count more than training steps with small gradients.
            clipped: Pair (variance, sqnorm) to average in place of the moments' own values.
        """
        if isinstance(moments, AveragedMoments):
            return moments.past
        pair, weight = clipped or (moments.variance, moments.sqnorm), information(moments)
        if weight <= 0.0 or not (math.isfinite(pair[0]) and math.isfinite(pair[1])):
            return self
        temporal = moments.source == "temporal"
        anew = self.outdated or (self.temporal and not temporal)
        past = MovingMoments() if anew else self
        size = _size(*pair)
        if relative and size == 0.0 and moments.batch_sqnorm == 0.0:
            return self  # if variance and squared norm are 0, their ratio is undefined
        level = (past.level or size) if relative else 0.0
        if level > 0.0:
            unit = max(level, size / JUMP)
            pair = (pair[0] / unit, pair[1] / unit)
        now = seen.samples + seen.batch_size
        passed = (now - past.measured_at) / seen.base_batch_size
        average = past.average.add(
            pair,
            forget=min(max(passed, 0.0) / window, MOST if relative or window >= WINDOW else 1.0),
            weight=weight,
            plain=averaging == "mean-then-ema",
        )
        if level > 0.0 and size > 0.0:
            level = 0.5 * (level + min(size, JUMP * level))
        return MovingMoments(average=average, measured_at=now, temporal=temporal, level=level)

    def noise_scale(self, *, dataset_size: int | None = None) -> Range | None:
        """Return the gradient noise scale in samples with its interval, or None if it is unknown.

        The upper bound is `inf` if the data do not exclude an infinite noise scale. The noise scale
        is `inf` if the mean squared norm is not above 0. Without noise, the noise scale and both
        bounds of its interval are 0.

        Args:
            dataset_size: Number of samples N of a data set from which batches are drawn without
                replacement. If set, the result is the noise scale of the data set's own gradient,
                whose squared norm is sqnorm + variance / N. If None, the data set is treated as
                infinite.
        """
        signal = self.average.ratio()
        if signal is None:
            variance, sqnorm = self.average.values
            quiet = variance <= 0.0 or math.isinf(sqnorm / variance)
            known = sqnorm > 0.0 and self.average.count > FEWEST_DEGREES + 1
            return Range(value=0.0, low=0.0, high=0.0) if quiet and known else None
        shift = 1.0 / dataset_size if dataset_size else 0.0
        value, low, high = (
            1.0 / (one + shift) if one + shift > 0.0 else math.inf
            for one in (signal.value, signal.high, signal.low)
        )
        return Range(value=value, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragedMoments(GradientMoments):
    """Hold moments that are averages over past training steps.

    Args:
        past: Averages that the moments come from.
    """

    past: MovingMoments


def averaged_moments(moments: GradientMoments, *, past: MovingMoments) -> AveragedMoments:
    """Return a step's moments, with (variance, sqnorm) replaced by the running averages.

    >>> m = GradientMoments(batch_size=4, parts=2, batch_sqnorm=9.0, variance=1.0)
    >>> past = MovingMoments(average=Average(values=(8.0, 2.0), weight=1.0, count=3))
    >>> s = averaged_moments(m, past=past)
    >>> s.variance, s.sqnorm, s.noise_scale
    (8.0, 2.0, 4.0)

    Args:
        moments: Moments of the training step.
        past: Running averages, which include the moments of the training step.
    """
    unit = past.level or 1.0  # restores the magnitude of the last measured steps
    variance, sqnorm = (unit * mean for mean in past.average.values)
    return AveragedMoments(
        batch_size=moments.batch_size,
        parts=moments.parts,
        batch_sqnorm=sqnorm + variance / moments.batch_size,
        variance=variance,
        source=moments.source,
        past=past,
    )


def information(moments: GradientMoments) -> float:
    """Return the weight of a measurement: batch_size^2 * (parts - 1) / parts.

    >>> information(GradientMoments(batch_size=8, parts=2, batch_sqnorm=3.0, variance=8.0))
    32.0
    """
    return moments.batch_size**2 * (moments.parts - 1) / moments.parts


def _size(variance: float, sqnorm: float) -> float:
    """Return the variance, or the squared norm if the training step had no noise.

    Variance and squared norm have the same unit, so an average never mixes units.
    """
    return variance if variance > ROUNDING * abs(sqnorm) else abs(sqnorm)
