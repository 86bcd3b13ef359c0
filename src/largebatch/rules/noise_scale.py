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
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import asking, check_above_zero, multiple


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
    """Proposes `kappa` times the noise scale, whether that is more or less than the batch in hand.

    The unbiased squared norm of one step may be lost in the noise, and the batch then has no bound
    (see `NormTest`): put `Averaged` around it. Without gradient and noise the batch stays.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8, moments=m)
    >>> rule, proposed = NoiseScaleControl(kappa=0.5), Decision(next_batch_size=8, base_steps=1)
    >>> rule.update(None, seen, proposed)[1].reason
    'noise scale 16 x 0.5; batch 8'

    Args:
        kappa: above 0. 1 / eta^2 is `NormTest(eta=eta, denominator="unbiased")` up to rounding,
            by which their batches may differ by one sample.
        offset: samples that are added to the noise scale, 0 or more.

    Raises:
        ValueError: a kappa that is not above 0, or an offset below 0.

    Reference: McCandlish et al., 2018, arXiv 1812.06162.
    """

    kappa: float = 1.0
    offset: float = field(default=0.0, metadata=LATER)

    needs = frozenset({"moments"})
    changes = frozenset({"batch"})

    def __post_init__(self) -> None:
        check_above_zero(self, example="NoiseScaleControl(kappa=1.0)", kappa=self.kappa)
        if not 0.0 <= self.offset < math.inf:
            raise ValueError(
                "The offset is a number of samples, 0 or more, as in "
                f"NoiseScaleControl(kappa=0.1, offset=1.0); got {self}."
            )

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        proposed = asking(proposed, self.needs)
        return state, multiple(proposed, seen, factor=self.kappa, plus=self.offset)


def control_by_diversity(*, delta: float) -> NoiseScaleControl:
    """Return the rule of DiveBatch: delta (1 + noise scale).

    >>> control_by_diversity(delta=0.5)
    NoiseScaleControl(kappa=0.5, offset=1.0)

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
    NoiseScaleControl(kappa=6.0, offset=0.0)

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
