"""Set the batch size to a multiple of the noise scale, by one formula that covers three papers.

    next B = kappa * (offset + variance / sqnorm)

The variance is the variance of one sample's gradient. `sqnorm` is the unbiased squared norm of the
true gradient G.

McCandlish, Kaplan, Amodei, OpenAI Dota Team: An Empirical Model of Large-Batch Training, 2018,
arXiv 1812.06162, uses offset = 0. With kappa = 1, one step makes half the progress of a step
without noise.

Chen, Wang, Sundaram: DiveBatch, 2025, arXiv 2509.16173, uses kappa = delta and offset = 1. The
batch size of DiveBatch is delta * N * D, where D = sum |g_i|^2 / |sum g_i|^2 is the diversity of
the gradients of the N samples in the data set. Because sum |g_i|^2 is N * (|G|^2 + variance) and
|sum g_i|^2 is N^2 * |G|^2, the product N * D equals 1 + noise scale. Therefore `NoiseScaleControl`
does not need the gradients of single samples over an epoch.

Qin, Rajbhandari, Ruwase, Yan, Yang, He: SimiGrad, NeurIPS 2021, uses kappa = 2 * c / (1 - c) and
offset = 0. A batch is large enough for SimiGrad when the gradients of its two halves have the
cosine c. The cosine of the two gradients is |G|^2 / (|G|^2 + 2 * variance / B), and this equation
is solved for B. The authors' program instead moves the batch size towards the target step by step.
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
    """Return 2 * c / (1 - c): kappa for the batch whose two halves have gradients with cosine c.

    >>> kappa_of_cosine(0.75)
    6.0

    Args:
        target: Cosine c, in (0, 1).
    """
    return 2.0 * target / (1.0 - target)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScaleControl(DefaultFacts):
    """Propose `kappa` times the noise scale if the batch size lies outside the confidence interval.

    The noise scale comes from running averages (`MovingMoments`). The batch size stays until four
    steps were measured, and while the batch size lies within the confidence interval.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> rule, proposed = NoiseScaleControl(kappa=2.0), Decision(next_batch_size=8, base_steps=1)
    >>> state = rule.init()
    >>> for step in range(4):
    ...     seen = Measurement(step=step, samples=8 * step, base_steps=step, batch_size=8,
    ...         base_batch_size=8, moments=m)
    ...     state, decision = rule.update(state, seen, proposed)
    >>> decision.reason
    'noise scale 16 [16, 16] x kappa 2; batch size 32'

    Args:
        kappa: Batch size divided by the noise scale, above 0. kappa = 1 / eta^2 decides like
            `NormTest(eta=eta, denominator="unbiased")`; rounding may make a difference of one
            sample.
        offset: Number of samples added to the noise scale, 0 or more.
        statistic: "moments" for the raw gradient (SGD), or "preconditioned_moments" for the
            gradient divided as the optimizer divides it (Adam, Adagrad).

    Raises:
        ValueError: If `kappa` is not above 0, if `offset` is negative, or if the statistic is
            unknown.

    Reference: McCandlish et al., 2018, arXiv 1812.06162; with an offset, Chen, Wang, Sundaram,
    DiveBatch, 2025, arXiv 2509.16173.
    """

    kappa: float = 1.0
    offset: float = field(default=0.0, metadata=LATER)
    statistic: Statistic = field(default="moments", metadata=LATER)

    changes = frozenset({"batch"})

    @property
    def references(self) -> tuple[str, ...]:
        """Keys of the papers whose formula the rule's arguments give."""
        divebatch = ("chen2025divebatch",) if self.offset else ()
        return ("mccandlish2018empirical", *divebatch)

    def __post_init__(self) -> None:
        check_above_zero(self, example="NoiseScaleControl(kappa=1.0)", kappa=self.kappa)
        check_statistic(self, self.statistic)
        if not 0.0 <= self.offset < math.inf:
            raise ValueError(
                f"{self} was given, but offset is a number of samples and must be 0 or more. "
                "Example: NoiseScaleControl(kappa=0.1, offset=1.0)"
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
        added = f", plus {self.offset:.4g}," if self.offset else ""
        because = f"noise scale {noise}{added} x kappa {self.kappa:.4g}"
        required = scaled(noise, factor=self.kappa, plus=self.offset)
        return state, by_evidence(proposed, seen, required=required, because=because)


def control_by_diversity(*, delta: float) -> NoiseScaleControl:
    """Return the rule of DiveBatch, which sets the batch size to delta * (1 + noise scale).

    >>> control_by_diversity(delta=0.5)
    NoiseScaleControl(kappa=0.5, offset=1.0, statistic='moments')

    Args:
        delta: Factor on the diversity of the gradients, above 0.

    Raises:
        ValueError: If `delta` is not above 0.

    Reference: Chen, Wang, Sundaram, DiveBatch, 2025, arXiv 2509.16173.
    """
    if not 0.0 < delta < math.inf:
        raise ValueError(
            f"delta={delta!r} was given, but delta must be a number above 0. "
            "Example: lb.methods.gradient_diversity(delta=0.1)"
        )
    return NoiseScaleControl(kappa=delta, offset=1.0)


def control_by_cosine(*, target: float) -> NoiseScaleControl:
    """Return the rule of SimiGrad: the gradients of the batch's two halves have the target cosine.

    >>> control_by_cosine(target=0.75)
    NoiseScaleControl(kappa=6.0, offset=0.0, statistic='moments')

    Args:
        target: Cosine c, in (0, 1).

    Raises:
        ValueError: If `target` is outside (0, 1).

    Reference: Qin et al., SimiGrad, NeurIPS 2021.
    """
    if not 0.0 < target < 1.0:
        raise ValueError(
            f"target={target!r} was given, but the target is a cosine in (0, 1). "
            "Example: lb.methods.cosine_test(target=0.75)"
        )
    return NoiseScaleControl(kappa=kappa_of_cosine(target))
