"""SimiGrad: the batch is large enough where its two halves' gradients point the same way.

    cosine of the halves = |G|^2 / (|G|^2 + 2 variance / B)
    next B = 2 c / (1 - c) variance / |G|^2

The first is what the cosine of two halves of B samples comes to, with the true gradient G and the
variance of one sample; the second is the batch at which it is the target c. So the target is a norm
test on the unbiased squared norm with eta^2 = (1 - c) / (2 c).

SimiGrad, NeurIPS 2021. Its program moves towards the target in steps; here the batch is solved for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.rules.sizes import asking, noise_ratio, proposal


def cosine_of_halves(moments: GradientMoments) -> float | None:
    """|G|^2 / (|G|^2 + 2 variance / B), negative where the unbiased |G|^2 is; None without a
    gradient.

    Of moments from two equal parts it is <a, b> / mean(|a|^2, |b|^2) exactly.

    >>> cosine_of_halves(GradientMoments(batch_size=8, parts=2, batch_sqnorm=3.0, variance=4.0))
    0.714...
    """
    sqnorm = moments.sqnorm
    whole = sqnorm + 2.0 * max(moments.variance, 0.0) / moments.batch_size
    return sqnorm / whole if whole > 0.0 else None


def cosine_batch(*, ratio: float, target: float) -> float:
    """2 c / (1 - c) times the noise scale, in samples.

    >>> cosine_batch(ratio=10.0, target=0.75)
    60.0

    Args:
        ratio: the noise scale, 0 to inf.
        target: c, in (0, 1).
    """
    return 2.0 * target / (1.0 - target) * ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineTest:
    """Proposes the batch whose halves' gradients have the target cosine: it grows where theirs is
    below, and may shrink where it is above.

    As the unbiased squared norm stands in it, it is for averages: put `Averaged` around it.

    >>> m = GradientMoments(batch_size=8, parts=2, batch_sqnorm=3.0, variance=16.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8, moments=m)
    >>> rule, proposed = CosineTest(target=0.5), Decision(next_batch_size=8, base_steps=1)
    >>> rule.update(None, seen, proposed)[1].reason
    'cosine 0.2 for 0.5; batch 32'

    Args:
        target: c, in (0, 1).

    Raises:
        ValueError: a target outside (0, 1).

    Reference: SimiGrad, NeurIPS 2021.
    """

    target: float = 0.75

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    changes: ClassVar[frozenset[str]] = frozenset({"batch"})
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0:
            raise ValueError(
                f"The target is a cosine in (0, 1), as in CosineTest(target=0.75); got {self}."
            )

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        proposed = asking(proposed, self.needs)
        moments = seen.moments
        if moments is None:
            return state, proposed
        ratio = noise_ratio(variance=moments.variance, sqnorm=moments.sqnorm)
        required = None if ratio is None else cosine_batch(ratio=ratio, target=self.target)
        cosine = cosine_of_halves(moments)
        found = "unknown" if cosine is None else f"{cosine:.4g}"
        because = f"cosine {found} for {self.target:.4g}"
        return state, proposal(proposed, seen, required=required, because=because)
