"""CABS: the batch from the learning rate, the gradient's variance and the loss.

    next B = lr variance / loss

with the variance of one sample's gradient and running averages of both numbers. The loss stands for
its distance from the least possible one, which is taken to be 0.

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
"""Of the averages, in each measured step."""


def cabs_batch(*, lr: float, variance: float, loss: float) -> float | None:
    """lr variance / loss, in samples, to the nearest one; None where the loss is not above 0.

    >>> cabs_batch(lr=0.1, variance=200.0, loss=0.5)
    40.0

    Args:
        lr: learning rate, 0 or more.
        variance: of one sample's gradient; below 0 counts as 0.
        loss: above its least possible value.
    """
    if not loss > 0.0 or not math.isfinite(loss):
        return None
    batch = lr * max(variance, 0.0) / loss
    return float(round(batch)) if math.isfinite(batch) else batch


@dataclass(frozen=True, slots=True, kw_only=True)
class CABSState:
    """The state of `CABS`.

    Args:
        average: of (variance, loss) as in the authors' program. It begins with the variance 0 and
            the loss 1 and does not correct that, so the batch starts small. Its variance has the
            divisor B, here it is the unbiased one.
        evidence: of the same pairs without that bias, for the interval.
    """

    average: Average = field(default_factory=lambda: Average(values=(0.0, 1.0), weight=1.0))
    evidence: Average = field(default_factory=Average)


@dataclass(frozen=True, slots=True, kw_only=True)
class CABS(DefaultFacts):
    """Proposes lr x variance / loss, for SGD without momentum; the batch may shrink. The authors
    keep it in [16, 2048]: `ClampBatch(min=16, max=2048)`.

    The batch changes if it lies outside of the interval of lr x variance / loss. The authors'
    program sets it in each step. The learning rate is that of this step: rules on the rate stand
    before it.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16_000.0)
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8,
    ...     base_lr=0.1, loss=1.0, moments=m)
    >>> rule, proposed, state = CABS(), Decision(next_batch_size=8, base_steps=1), CABSState()
    >>> for _ in range(4):
    ...     state, decision = rule.update(state, seen, proposed)
    >>> decision.reason
    'lr 0.1 x variance 2968 / loss 1 [1600, 1600]; batch 1600'

    Reference: Balles et al., 2016, arXiv 1612.05086.
    """

    needs = frozenset({"moments", "loss"})
    changes = frozenset({"batch"})

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
            # its weights sum up to 1 from the start on: nothing corrects the bias towards (0, 1)
            average=state.average.add(pair, forget=1.0 - KEEP, weight=1.0 - KEEP),
            evidence=state.evidence.add(pair, forget=1.0 - KEEP),
        )
        variance, loss = state.average.values
        lr = seen.base_lr * proposed.lr_multiplier
        required = cabs_batch(lr=lr, variance=variance, loss=loss)
        because = f"lr {lr:.4g} x variance {variance:.4g} / loss {loss:.4g}"
        span = _span(required, state.evidence.ratio(), lr=lr)
        if span is not None:
            because = f"{because} [{span.low:.4g}, {span.high:.4g}]"
        return state, by_evidence(proposed, seen, required=span, because=because)


def _span(required: float | None, inverse: Range | None, *, lr: float) -> Range | None:
    """Return the required batch with the interval of lr variance / loss."""
    if required is None or inverse is None or not inverse.high > 0.0:
        return None
    low = lr / inverse.high
    high = lr / inverse.low if inverse.low > 0.0 else math.inf
    return Range(value=required, low=low, high=high)
