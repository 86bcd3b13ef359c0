"""Set the batch size from the learning rate, the gradient's variance and the loss (CABS).

    next B = lr * variance / loss

The variance is the variance of one sample's gradient. Variance and loss are running averages. The
formula needs the distance of the loss from its smallest possible value, which is assumed to be 0.

Balles, Romero, Hennig: Coupling Adaptive Batch Sizes with Learning Rates, 2016, arXiv 1612.05086.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from largebatch.core.average import Average
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.range import Range
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import asking, by_evidence

KEEP = 0.95
"""Fraction of the running averages that each measured step keeps."""


def cabs_batch(*, lr: float, variance: float, loss: float) -> float | None:
    """Return lr * variance / loss rounded to whole samples, or None if the loss is not above 0.

    >>> cabs_batch(lr=0.1, variance=200.0, loss=0.5)
    40.0

    Args:
        lr: Learning rate, 0 or more.
        variance: Variance of one sample's gradient. A negative value counts as 0.
        loss: Loss above its smallest possible value.
    """
    if not loss > 0.0 or not math.isfinite(loss):
        return None
    batch = lr * max(variance, 0.0) / loss
    return float(round(batch)) if math.isfinite(batch) else batch


@dataclass(frozen=True, slots=True, kw_only=True)
class CABSState:
    """Hold the state of `CABS`.

    Args:
        average: Running averages of variance and loss, as in the authors' program. The averages
            start at variance 0 and loss 1, and this start is not corrected, so the first batches
            are small. The authors compute the variance with the divisor B; this package uses the
            unbiased variance.
        evidence: Running averages of variance and loss without the start at (0, 1), for the
            confidence interval.
    """

    average: Average = field(default_factory=lambda: Average(values=(0.0, 1.0), weight=1.0))
    evidence: Average = field(default_factory=Average)


@dataclass(frozen=True, slots=True, kw_only=True)
class CABS(DefaultFacts):
    """Propose the batch size lr * variance / loss, for SGD without momentum; the batch may shrink.

    The batch size changes only if it lies outside the confidence interval of lr * variance / loss.
    The authors' program sets the batch size in every step and keeps the batch size in [16, 2048];
    to use the same limits, add `ClampBatch(min=16, max=2048)`. CABS reads the learning rate of the
    current step, so put rules for the learning rate before CABS.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16_000.0)
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8,
    ...     base_lr=0.1, loss=1.0, moments=m)
    >>> rule, proposed, state = CABS(), Decision(next_batch_size=8, base_steps=1), CABSState()
    >>> for _ in range(4):
    ...     state, decision = rule.update(state, seen, proposed)
    >>> decision.reason
    'lr 0.1 x variance 2968 / loss 1, interval [1600, 1600]; batch size 1600'

    Reference: Balles, Romero, Hennig, 2016, arXiv 1612.05086.
    """

    needs = frozenset({"moments", "loss"})
    changes = frozenset({"batch"})
    references = ("balles2016coupling",)

    def init(self) -> CABSState:
        return CABSState()

    def update(
        self, state: CABSState, seen: Measurement, proposed: Decision
    ) -> tuple[CABSState, Decision]:
        proposed = asking(proposed, self.needs)
        if seen.moments is None or seen.loss is None:
            return state, proposed
        pair = (seen.moments.variance, seen.loss)
        state = CABSState(
            # The weights sum to 1 from the start, so the bias towards (0, 1) is not corrected.
            average=state.average.add(pair, forget=1.0 - KEEP, weight=1.0 - KEEP),
            evidence=state.evidence.add(pair, forget=1.0 - KEEP),
        )
        variance, loss = state.average.values
        lr = seen.base_lr * proposed.lr_multiplier
        required = cabs_batch(lr=lr, variance=variance, loss=loss)
        because = f"lr {lr:.4g} x variance {variance:.4g} / loss {loss:.4g}"
        span = _span(required, state.evidence.ratio(), lr=lr)
        if span is not None:
            because = f"{because}, interval [{span.low:.4g}, {span.high:.4g}]"
        return state, by_evidence(proposed, seen, required=span, because=because)


def _span(required: float | None, inverse: Range | None, *, lr: float) -> Range | None:
    """Return the required batch size with the confidence interval of lr * variance / loss."""
    if required is None or inverse is None or not inverse.high > 0.0:
        return None
    low = lr / inverse.high
    high = lr / inverse.low if inverse.low > 0.0 else math.inf
    return Range(value=required, low=low, high=high)
