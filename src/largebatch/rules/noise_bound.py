"""The bound that the noise sets: a batch above the noise scale costs more samples than it saves.

McCandlish et al.: An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.rules.sizes import asking, check_above_zero, noise_ratio, whole_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The last noise scale that was known, in samples; `inf` before."""

    noise_scale: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampToNoiseScale:
    """Lets the next batch grow to at most `kappa` times the noise scale.

    The batch in hand stays where it is above that: this bounds growth. Between measurements the
    last noise scale counts. A single step's is rough: put `Averaged` around it.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8, moments=m)
    >>> rule, proposed = ClampToNoiseScale(), Decision(next_batch_size=64, base_steps=1)
    >>> rule.update(rule.init(), seen, proposed)[1].reason
    'batch 64 bounded to 16, noise scale 16'

    Args:
        kappa: batch / noise scale that still pays, above 0.

    Raises:
        ValueError: a kappa that is not above 0.

    Reference: arXiv 1812.06162; as the critical batch at which growth ends, arXiv 2510.14717.
    """

    kappa: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    changes: ClassVar[frozenset[str]] = frozenset()
    bounds: ClassVar[frozenset[str]] = frozenset({"batch"})
    forbids: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_above_zero(self, example="ClampToNoiseScale(kappa=1.0)", kappa=self.kappa)

    def init(self) -> Ceiling:
        return Ceiling()

    def update(
        self, state: Ceiling, seen: Measurement, proposed: Decision
    ) -> tuple[Ceiling, Decision]:
        proposed = asking(proposed, self.needs)
        if seen.moments is not None:
            ratio = noise_ratio(variance=seen.moments.variance, sqnorm=seen.moments.sqnorm)
            state = state if ratio is None else Ceiling(noise_scale=ratio)
        wanted = proposed.next_batch_size
        most = self.kappa * state.noise_scale
        if wanted <= seen.batch_size or wanted <= most:
            return state, proposed
        size = min(max(whole_batch(most, ranks=seen.ranks), seen.batch_size), wanted)
        because = f"batch {wanted} bounded to {size}, noise scale {state.noise_scale:.4g}"
        return state, proposed.resized(size, because=because)
