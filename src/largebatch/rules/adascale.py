"""AdaScale: the learning rate grows with the batch by as much as the gradient's noise allows.

    gain r = (variance_b + sqnorm) / (variance_b / S + sqnorm),    in [1, S] for S >= 1
    lr = r * base lr;    one step is worth r steps of the base batch

with `variance_b` the variance of the base batch's gradient (paper: sigma^2, here variance / B0),
`sqnorm` the squared norm of the true gradient (paper: mu^2) and S = B / B0 the scale.

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
"""The paper's least variance of a base batch, so that 0/0 never occurs; it has a unit, so losses
that differ by a constant factor get different gains. Used by `clip="first"` only."""

RELATIVE_FLOOR = 1e-6
"""A variance below this fraction of the squared norm is rounding of float32 squares: none."""


def gain(*, scale: float, variance: float, sqnorm: float) -> float:
    """How many steps of the base batch one step of `scale` base batches is worth.

    (variance + sqnorm) / (variance / scale + sqnorm): 1 without variance, `scale` without signal.

    >>> gain(scale=4, variance=2.0, sqnorm=1.0)
    2.0

    Args:
        scale: S = B / B0, above 0.
        variance: of the base batch's gradient (variance of one sample / B0); below 0 counts as 0.
        sqnorm: squared norm of the true gradient; below 0 counts as 0.

    Reference: Johnson et al., AdaScale SGD, 2020, arXiv 2007.05105.
    """
    if variance <= 0.0:
        return 1.0
    signal = max(sqnorm, 0.0)
    # multiplied through by the scale: exactly `scale` without signal, and no 0/0 on tiny numbers
    return scale * ((variance + signal) / (variance + scale * signal))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaScale(DefaultFacts):
    """Multiplies the learning rate by the gain and advances the clock by it.

    The scale may change at any step, since only statistics of single samples are stored.

    >>> rule = AdaScale()
    >>> m = GradientMoments(batch_size=256, parts=4, batch_sqnorm=2.0, variance=256.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64, moments=m)
    >>> rule.update(rule.init(), seen, Decision(next_batch_size=256, base_steps=4))[1].lr_multiplier
    2.5

    Args:
        window: length of the running averages in base batches. The averages lose the part
            S / window of the past in each step of the scale S, so the gain does not depend on the
            parts in which the gradient is measured. They lose an eighth of it at most, unless the
            window is below 100. The paper's value is 1000, and its steps have S parts.
        exponent: power of the gain in the learning rate; the clock advances by the gain itself.
            0.5 with `statistic="preconditioned_moments"` is for Adam: it has no theory, neither
            here nor in the paper.
        statistic: "moments" of the bare gradient (SGD), or "preconditioned_moments" (Adam).
        averaging: "ema", exponential with bias correction; or the paper's "mean-then-ema", the
            plain mean until the window is full.
        clip: "on-read" keeps the averages unbiased and bounds them when the gain is computed;
            "first" bounds each sample by an absolute floor before averaging, as the paper does,
            which biases the squared norm upwards.

    Raises:
        ValueError: a window or an exponent that is not positive.

    Reference: Johnson et al., AdaScale SGD, 2020, arXiv 2007.05105.
    """

    window: float = 1000.0
    exponent: float = 1.0
    statistic: Statistic = "moments"
    averaging: Averaging = "ema"
    clip: Literal["on-read", "first"] = "on-read"

    changes = frozenset({"lr", "clock"})
    forbids = frozenset({"AdaScale", "LinearScaling", "SqrtScaling", "Legw", "StepClock"})

    def __post_init__(self) -> None:
        check_statistic(self, self.statistic)
        if not self.window > 0 or not self.exponent > 0:
            raise ValueError(f"window and exponent are above 0, as in AdaScale(); got {self}.")

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
        decision = Decision(
            next_batch_size=proposed.next_batch_size,
            lr_multiplier=proposed.lr_multiplier * r**self.exponent,
            base_steps=r,
            measure_next=proposed.measure_next | self.needs,
            reason=join(proposed.reason, f"gain {r:.4g} of {seen.scale:.4g}"),
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
        # as in the paper, variance and squared norm are averaged as they are, not by their level
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
            return 1.0  # nothing measured yet: the paper starts at 1, too
        variance, sqnorm = state.average.values
        variance /= seen.base_batch_size
        if self.clip == "on-read" and variance <= RELATIVE_FLOOR * sqnorm:
            return 1.0
        return gain(scale=seen.scale, variance=variance, sqnorm=sqnorm)
