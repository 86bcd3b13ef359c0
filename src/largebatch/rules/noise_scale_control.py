"""The batch as a multiple of the noise scale.

    next B = kappa variance / sqnorm

with the variance of one sample's gradient and the unbiased squared norm of the true gradient. At
kappa = 1 a step's progress is half of what a noiseless one would make.

McCandlish et al.: An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.rules.sizes import asking, check_above_zero, multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScaleControl:
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
        kappa: above 0. 1 / eta^2 is `NormTest(eta=eta, denominator="unbiased")`.

    Raises:
        ValueError: a kappa that is not above 0.

    Reference: McCandlish et al., 2018, arXiv 1812.06162.
    """

    kappa: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    changes: ClassVar[frozenset[str]] = frozenset({"batch"})
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_above_zero(self, example="NoiseScaleControl(kappa=1.0)", kappa=self.kappa)

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        proposed = asking(proposed, self.needs)
        return state, multiple(proposed, seen, factor=self.kappa, name="noise scale")
