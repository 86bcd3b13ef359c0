"""DiveBatch: the batch follows the gradients' diversity, by its identity with the noise scale.

    D = sum |g_i|^2 / |sum g_i|^2 over the N samples of the data set,    next B = delta N D

With the true gradient G and the variance of one sample, sum |g_i|^2 = N (|G|^2 + variance) and
|sum g_i|^2 = N^2 |G|^2, so that

    N D = 1 + variance / |G|^2,     next B = delta (1 + noise scale),

which needs no epoch of single samples' gradients.

DiveBatch, 2025, arXiv 2509.16173.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.rules.sizes import asking, check_above_zero, multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientDiversity:
    """Proposes delta (1 + noise scale); `LimitGrowth(shrink=1.0)` after it never shrinks, as the
    authors' program does.

    That program adds up gradients of a whole epoch while the weights move; here the moments of the
    step, or with `Averaged` around the rule their averages, stand for them.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8, moments=m)
    >>> rule, proposed = GradientDiversity(delta=0.5), Decision(next_batch_size=8, base_steps=1)
    >>> rule.update(None, seen, proposed)[1].reason
    'diversity x data set 17 x 0.5; batch 9'

    Args:
        delta: above 0; the authors' program has 0.1 for CIFAR.

    Raises:
        ValueError: a delta that is not above 0.

    Reference: arXiv 2509.16173.
    """

    delta: float = 0.1

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    changes: ClassVar[frozenset[str]] = frozenset({"batch"})
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_above_zero(self, example="GradientDiversity(delta=0.1)", delta=self.delta)

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        proposed = asking(proposed, self.needs)
        name = "diversity x data set"
        return state, multiple(proposed, seen, factor=self.delta, plus=1.0, name=name)
