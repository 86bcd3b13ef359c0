"""The batch as a multiple of the noise scale, which is the formula of three papers.

    next B = kappa (offset + variance / sqnorm)

with the variance of one sample's gradient and the unbiased squared norm of the true gradient G.

McCandlish et al., An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162: offset = 0.
At kappa = 1 a step's progress is half of what a noiseless one would make.

DiveBatch, 2025, arXiv 2509.16173: kappa = delta, offset = 1. Its diversity of the N samples of a
data set is D = sum |g_i|^2 / |sum g_i|^2 and its batch is delta N D. As sum |g_i|^2 is
N (|G|^2 + variance) and |sum g_i|^2 is N^2 |G|^2, N D is 1 + noise scale. So no epoch of single
samples' gradients is needed.

SimiGrad, NeurIPS 2021: kappa = 2 c / (1 - c), offset = 0. Its batch is large enough when the
gradients of its two halves have the cosine c. Their cosine is |G|^2 / (|G|^2 + 2 variance / B),
which is solved for B here. The authors' program moves towards the target in steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from largebatch.core.codec import LATER
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.moving_moments import MovingMoments
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import (
    Statistic,
    asking,
    by_evidence,
    check_above_zero,
    check_statistic,
    scaled,
)


def kappa_of_cosine(target: float) -> float:
    """Return 2 c / (1 - c), the multiple of the noise scale at which halves have the cosine c.

    >>> kappa_of_cosine(0.75)
    6.0

    Args:
        target: c, in (0, 1).
    """
    return 2.0 * target / (1.0 - target)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScaleControl(DefaultFacts):
    """Proposes `kappa` times the noise scale if the batch in hand is certainly smaller or larger.

    The noise scale is that of the running averages (`MovingMoments`). The batch stays until four
    steps were measured, and while it lies within the interval.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> rule, proposed = NoiseScaleControl(kappa=2.0), Decision(next_batch_size=8, base_steps=1)
    >>> state = rule.init()
    >>> for step in range(4):
    ...     seen = Measurement(step=step, samples=8 * step, base_steps=step, batch_size=8,
    ...         base_batch_size=8, moments=m)
    ...     state, decision = rule.update(state, seen, proposed)
    >>> decision.reason
    'noise scale 16 [16, 16] x 2; batch 32'

    Args:
        kappa: above 0. 1 / eta^2 is `NormTest(eta=eta, denominator="unbiased")` up to rounding,
            by which their batches may differ by one sample.
        offset: samples that are added to the noise scale, 0 or more.
        statistic: "moments" of the bare gradient (SGD), or "preconditioned_moments", of the
            gradient as the optimizer divides it (Adam, Adagrad).

    Raises:
        ValueError: a kappa that is not above 0, an offset below 0, or an unknown statistic.

    Reference: McCandlish et al., 2018, arXiv 1812.06162.
    """

    kappa: float = 1.0
    offset: float = field(default=0.0, metadata=LATER)
    statistic: Statistic = field(default="moments", metadata=LATER)

    changes = frozenset({"batch"})

    def __post_init__(self) -> None:
        check_above_zero(self, example="NoiseScaleControl(kappa=1.0)", kappa=self.kappa)
        check_statistic(self, self.statistic)
        if not 0.0 <= self.offset < math.inf:
            raise ValueError(
                "The offset is a number of samples, 0 or more, as in "
                f"NoiseScaleControl(kappa=0.1, offset=1.0); got {self}."
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.statistic})

    def init(self) -> MovingMoments:
        return MovingMoments()

    def update(
        self, state: MovingMoments, seen: Measurement, proposed: Decision
    ) -> tuple[MovingMoments, Decision]:
        proposed = asking(proposed, self.needs)
        moments = getattr(seen, self.statistic)
        if moments is None:
            return state, proposed
        state = state.add(moments, seen)
        noise = state.noise_scale()
        if noise is None:
            because = "noise scale not known yet"
            return state, by_evidence(proposed, seen, required=None, because=because)
        added = f" + {self.offset:.4g}" if self.offset else ""
        because = f"noise scale{added} {scaled(noise, plus=self.offset)} x {self.kappa:.4g}"
        required = scaled(noise, factor=self.kappa, plus=self.offset)
        return state, by_evidence(proposed, seen, required=required, because=because)


def control_by_diversity(*, delta: float) -> NoiseScaleControl:
    """Return the rule of DiveBatch: delta (1 + noise scale).

    >>> control_by_diversity(delta=0.5)
    NoiseScaleControl(kappa=0.5, offset=1.0, statistic='moments')

    Args:
        delta: above 0.

    Raises:
        ValueError: a delta that is not above 0.

    Reference: arXiv 2509.16173.
    """
    if not 0.0 < delta < math.inf:
        raise ValueError(
            "delta is a number above 0, as in lb.methods.gradient_diversity(delta=0.1); got "
            f"{delta!r}."
        )
    return NoiseScaleControl(kappa=delta, offset=1.0)


def control_by_cosine(*, target: float) -> NoiseScaleControl:
    """Return the rule of SimiGrad: the batch whose halves' gradients have the target cosine.

    >>> control_by_cosine(target=0.75)
    NoiseScaleControl(kappa=6.0, offset=0.0, statistic='moments')

    Args:
        target: c, in (0, 1).

    Raises:
        ValueError: a target outside (0, 1).

    Reference: SimiGrad, NeurIPS 2021.
    """
    if not 0.0 < target < 1.0:
        raise ValueError(
            "The target is a cosine in (0, 1), as in lb.methods.cosine_test(target=0.75); got "
            f"{target!r}."
        )
    return NoiseScaleControl(kappa=kappa_of_cosine(target))
