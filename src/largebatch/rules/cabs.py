"""CABS: the batch from the learning rate, the gradient's variance and the loss.

    next B = lr variance / loss

with the variance of one sample's gradient and running averages of both numbers. The loss stands for
its distance from the least possible one, which is taken to be 0.

Balles, Romero, Hennig: Coupling Adaptive Batch Sizes with Learning Rates, 2016, arXiv 1612.05086.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.core.average import Average
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import asking, proposal

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
class CABS(DefaultFacts):
    """Proposes lr x variance / loss, for SGD without momentum; the batch may shrink. The authors
    keep it in [16, 2048]: `ClampBatch(min=16, max=2048)`.

    The learning rate is that of this step: rules on the rate stand before it.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16_000.0)
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8,
    ...     base_lr=0.1, loss=1.0, moments=m)
    >>> rule, proposed = CABS(), Decision(next_batch_size=8, base_steps=1)
    >>> rule.update(rule.init(), seen, proposed)[1].reason
    'lr 0.1 x variance 800 / loss 1; batch 80'

    Reference: Balles et al., 2016, arXiv 1612.05086.
    """

    needs = frozenset({"moments", "loss"})
    changes = frozenset({"batch"})

    def init(self) -> Average:
        # As the authors' program begins: variance 0, loss 1, and no correction of that, so the
        # batch starts small. Its variance has the divisor B, here it is the unbiased one.
        return Average(values=(0.0, 1.0), weight=1.0)

    def update(
        self, state: Average, seen: Measurement, proposed: Decision
    ) -> tuple[Average, Decision]:
        proposed = asking(proposed, self.needs)
        if seen.moments is None or seen.loss is None:
            return state, proposed
        state = state.ema((seen.moments.variance, seen.loss), keep=KEEP)
        variance, loss = state.values
        lr = seen.base_lr * proposed.lr_multiplier
        required = cabs_batch(lr=lr, variance=variance, loss=loss)
        because = f"lr {lr:.4g} x variance {variance:.4g} / loss {loss:.4g}"
        return state, proposal(proposed, seen, required=required, because=because)
