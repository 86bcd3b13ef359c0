"""Running averages of the gradient's moments, and the noise scale that they tell.

    noise scale = mean variance / mean squared norm,    in samples

Numerator and denominator are averaged separately, since the ratio of single steps is biased and has
heavy tails: McCandlish et al., An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162,
appendix A.1.

How much of the past is forgotten counts in base batches, as in AdaScale's paper, where a step at
the scale S forgets the part S / 1000. It does not depend on the parts in which a step was measured.
A measurement weighs by what it knows: where noise dominates, the squared norm that a batch B in k
parts gives has the variance (variance / B)^2 k / (k - 1), up to a constant factor.
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
"""Length of the averages in base batches by which a batch is tested."""

ROUNDING = 1e-12
"""A variance below this part of the squared norm is no level to divide by."""

JUMP = 4.0
"""A measurement counts as one of so many times the level at most. A single step with a much larger
gradient would else outweigh all others."""

MOST = 0.125
"""Part of the past that one measurement makes forgotten at most. So the averages hold eight
measurements at least, however large the batch is and however rarely it is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingMoments:
    """Running averages of (variance of one sample, squared norm), which no batch size enters.

    A rough temporal estimate is forgotten as soon as a true one is there. Averages that an earlier
    version wrote counted their window in another unit, so they are forgotten, too.

    Args:
        average: of the two numbers.
        measured_at: the samples of the run after the last measured step.
        temporal: whether temporal estimates are in it.
        level: what the variance of the last measured steps was like (the squared norm if they had
            no noise), by which the next ones are divided; 0 before the first, and if they are not
            divided.
    """

    average: Average = field(default_factory=Average)
    measured_at: int = 0
    temporal: bool = False
    level: float = field(default=0.0, metadata=LATER)

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self.average.count > 0 and not self.outdated

    @property
    def outdated(self) -> bool:
        """Whether an earlier version wrote the averages, so that the next measurement begins them
        anew."""
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
        """Return the averages with one more measurement in them.

        Moments that are averages already (`AveragedMoments`) take the place of these. Moments that
        are not finite are left out, and so are those of a single part, which tell no variance.

        Args:
            moments: what was measured.
            seen: the step in which it was measured.
            window: length of the averages in base batches, above 0. The past loses the part
                (base batches since the last measurement) / window of its weight, and at most MOST.
                Windows below WINDOW are taken as they are, without that limit, if not `relative`.
            averaging: "ema", exponential; or "mean-then-ema", the plain mean until the window is
                full.
            relative: whether the pair is divided by the level of the variance before it, so that
                each step counts alike while gradient and noise shrink together, as they do in most
                runs. If not, steps with a large gradient count more.
            clipped: (variance, sqnorm) to average in place of those of the moments.
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
            return self  # neither noise nor gradient: nothing to learn of their ratio
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
        """Return the noise scale in samples with its interval; None while too little is known.

        `high` is `inf` if the data exclude no large noise scale, and so is `value` if the mean
        squared norm is not above 0. If there is no noise, it is 0.

        Args:
            dataset_size: samples N of a data set, of which the batches are drawn without
                replacement. The noise scale is then that of its own gradient, whose squared norm is
                sqnorm + variance / N. None for an infinite one.
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
    """Moments that are averages over past steps.

    Args:
        past: the averages.
    """

    past: MovingMoments


def averaged_moments(moments: GradientMoments, *, past: MovingMoments) -> AveragedMoments:
    """Return the moments of a step with the averaged (variance, sqnorm) in place of its own.

    >>> m = GradientMoments(batch_size=4, parts=2, batch_sqnorm=9.0, variance=1.0)
    >>> past = MovingMoments(average=Average(values=(8.0, 2.0), weight=1.0, count=3))
    >>> s = averaged_moments(m, past=past)
    >>> s.variance, s.sqnorm, s.noise_scale
    (8.0, 2.0, 4.0)
    """
    unit = past.level or 1.0  # of the last steps, so that the rule sees numbers of their size
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
    """Return the weight of a measurement: batch^2 (parts - 1) / parts.

    >>> information(GradientMoments(batch_size=8, parts=2, batch_sqnorm=3.0, variance=8.0))
    32.0
    """
    return moments.batch_size**2 * (moments.parts - 1) / moments.parts


def _size(variance: float, sqnorm: float) -> float:
    """Return the variance, or the squared norm of a step without noise: in any case in the square
    of the loss's unit, so that units never mix in an average."""
    return variance if variance > ROUNDING * abs(sqnorm) else abs(sqnorm)
