"""Multiply the learning rate by the gain that the measured gradient noise allows (AdaScale).

    gain r = (variance_b + sqnorm) / (variance_b / S + sqnorm),    in [1, S] for S >= 1
    lr = r * base lr;    one step counts as r base steps

`variance_b` is the variance of the base batch's gradient (sigma^2 in the paper, variance / B0
here). `sqnorm` is the squared norm of the true gradient (mu^2 in the paper). S = B / B0 is the
scale.

Johnson, Agrawal, Gu, Guestrin: AdaScale SGD: A User-Friendly Algorithm for Distributed Training,
2020, arXiv 2007.05105.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from largebatch.core.decision import Decision, join
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.moving_moments import Averaging, MovingMoments
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import Statistic, check_statistic

ABSOLUTE_FLOOR = 1e-6
"""Smallest allowed variance of the base batch's gradient in the paper of AdaScale, which prevents
0/0. The smallest allowed variance has the unit of a squared gradient, so multiplying the loss by a
constant changes the gain. Only AdaScale with `clip="first"` uses the smallest allowed variance."""

RELATIVE_FLOOR = 1e-6
"""Fraction of the squared norm below which a variance counts as 0, because it is only the rounding
error of float32 squares."""


def gain(*, scale: float, variance: float, sqnorm: float) -> float:
    """Return the gain: the number of base steps that one step of `scale` base batches counts as.

    The formula is (variance + sqnorm) / (variance / scale + sqnorm). The gain is 1 if the variance
    is 0, and `scale` if the squared norm is 0.

    >>> gain(scale=4, variance=2.0, sqnorm=1.0)
    2.0

    Args:
        scale: S = B / B0, above 0.
        variance: Variance of the base batch's gradient (variance of one sample's gradient / B0). A
            negative value counts as 0.
        sqnorm: Squared norm of the true gradient. A negative value counts as 0.

    Reference: Johnson, Agrawal, Gu, Guestrin, AdaScale SGD, 2020, arXiv 2007.05105.
    """
    if variance <= 0.0:
        return 1.0
    signal = max(sqnorm, 0.0)
    # Numerator and denominator are multiplied by `scale`: the result is exactly `scale` if the
    # squared norm is 0, and tiny numbers do not give 0/0.
    return scale * ((variance + signal) / (variance + scale * signal))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaScale(DefaultFacts):
    """Multiply the learning rate by the gain, and count each step as `gain` base steps.

    The gain is r = (v + sqnorm) / (v / S + sqnorm), between 1 and S for S >= 1. In the formula, v
    is the variance of the base batch's gradient, sqnorm is the squared norm of the true gradient,
    and S is batch_size / base_batch_size.

    The scale may change at any step, because only statistics of single samples are stored.

    >>> rule = AdaScale()
    >>> m = GradientMoments(batch_size=256, parts=4, batch_sqnorm=2.0, variance=256.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64, moments=m)
    >>> rule.update(rule.init(), seen, Decision(next_batch_size=256, base_steps=4))[1].lr_multiplier
    2.5

    Args:
        window: Length of the running averages, in base batches. One step at scale S replaces the
            fraction S / window of the averages, so the gain does not depend on the number of
            micro-batches per step. One step replaces at most 1/8 of the averages, unless the window
            is below 100. The paper of AdaScale uses a window of 1000, with S separately measured
            gradients per step.
        exponent: Power of the gain in the learning rate. For every exponent, a step counts as
            `gain` base steps. The exponent 0.5 with `statistic="preconditioned_moments"` is meant
            for Adam; neither the paper nor this package has a theory for the exponent 0.5.
        statistic: "moments" for the raw gradient (SGD), or "preconditioned_moments" for the
            gradient divided as Adam divides it.
        averaging: "ema" for exponential averages with bias correction, or "mean-then-ema" for the
            paper's averages: a plain mean until the window is full, then exponential.
        clip: "on-read" keeps the averages unbiased and bounds variance and squared norm when the
            gain is computed. "first" bounds each measurement from below before averaging, as the
            paper does, which makes the squared norm too large on average.

    Raises:
        ValueError: If `window` or `exponent` is not above 0, or if the statistic is unknown.

    Reference: Johnson, Agrawal, Gu, Guestrin, AdaScale SGD, 2020, arXiv 2007.05105.
    """

    window: float = 1000.0
    exponent: float = 1.0
    statistic: Statistic = "moments"
    averaging: Averaging = "ema"
    clip: Literal["on-read", "first"] = "on-read"

    changes = frozenset({"lr", "clock"})
    references = ("johnson2020adascale",)
    forbids = frozenset({"AdaScale", "LinearScaling", "SqrtScaling", "Legw", "StepClock"})

    def __post_init__(self) -> None:
        check_statistic(self, self.statistic)
        if not self.window > 0 or not self.exponent > 0:
            raise ValueError(
                f"window={self.window!r} and exponent={self.exponent!r} were given, but window and "
                "exponent must be above 0. Example: AdaScale(window=1000.0, exponent=1.0)"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.statistic})

    def init(self) -> MovingMoments:
        return MovingMoments()

    def update(
        self, state: MovingMoments, seen: Measurement, proposed: Decision
    ) -> tuple[MovingMoments, Decision]:
        moments = getattr(seen, self.statistic)
        if moments is not None:
            state = self._add(state, moments, seen)
        r = self._gain(state, seen)
        factor = r**self.exponent
        because = f"gain {r:.4g} at scale {seen.scale:.4g}: lr x{factor:.4g}"
        decision = Decision(
            next_batch_size=proposed.next_batch_size,
            lr_multiplier=proposed.lr_multiplier * factor,
            base_steps=r,
            measure_next=proposed.measure_next | self.needs,
            reason=join(proposed.reason, because),
            notice=proposed.notice,
        )
        return state, decision

    def _add(
        self, state: MovingMoments, moments: GradientMoments, seen: Measurement
    ) -> MovingMoments:
        clipped = None
        if self.clip == "first":
            variance = max(moments.variance, ABSOLUTE_FLOOR * seen.base_batch_size)
            clipped = (variance, max(moments.sqnorm, 0.0))
        # As in the paper, variance and squared norm are averaged without dividing by their level.
        return state.add(
            moments,
            seen,
            window=self.window,
            averaging=self.averaging,
            relative=False,
            clipped=clipped,
        )

    def _gain(self, state: MovingMoments, seen: Measurement) -> float:
        if not state.known:
            return 1.0  # Nothing is measured yet. The paper also starts at 1.
        variance, sqnorm = state.average.values
        variance /= seen.base_batch_size
        if self.clip == "on-read" and variance <= RELATIVE_FLOOR * sqnorm:
            return 1.0
        return gain(scale=seen.scale, variance=variance, sqnorm=sqnorm)
