"""Bounds on what the rules before them propose; a bound that acts says so in the reason.

Nothing may propose a learning rate or a batch after its bound. Among several bounds the last word
is the last one's: put `ClampBatch`, the hard limit, after `LimitGrowth`. The bound that remembers,
`Hysteresis`, has its own file.

A batch above the noise scale costs more samples than it saves, so `ClampToNoiseScale` bounds it:
McCandlish et al., An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import asking, check_above_zero, noise_ratio, whole_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampBatch(DefaultFacts):
    """Keeps the next batch in [min, max] and on a multiple.

    Sizes are rounded up to the multiple, since a rule proposes the least batch that suffices, and
    down only where `max` would be passed.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> rule, proposed = ClampBatch(max=512, multiple_of=64), Decision(
    ...     next_batch_size=700, base_steps=1)
    >>> rule.update(None, seen, proposed)[1].reason
    'batch 700 bounded to 512'

    Args:
        min, max: samples over all ranks; None for no upper bound.
        multiple_of: samples.

    Raises:
        ValueError: a bound below 1 or not whole, or no multiple between them.

    Reference: none.
    """

    min: int = 1
    max: int | None = None
    multiple_of: int = 1

    bounds = frozenset({"batch"})

    def __post_init__(self) -> None:
        given = [self.min, self.multiple_of, self.max or 1]
        sound = all(isinstance(size, int) for size in given) and min(given[:2]) >= 1
        if not sound or (self.max is not None and self._up(self.min) > self.max):
            raise ValueError(
                "ClampBatch needs whole numbers, 1 <= min <= max and a multiple between them, "
                f"as in ClampBatch(min=64, max=4096, multiple_of=64); got {self}."
            )

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        wanted = proposed.next_batch_size
        size = self._up(wanted if wanted > self.min else self.min)
        if self.max is not None and size > self.max:
            size = self.max // self.multiple_of * self.multiple_of
        if size == wanted:
            return state, proposed
        return state, proposed.resized(size, because=f"batch {wanted} bounded to {size}")

    def _up(self, size: int) -> int:
        return -(-size // self.multiple_of) * self.multiple_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampLr(DefaultFacts):
    """Keeps the multiplier of the learning rate in [min, max]. The clock is left as it is: an
    AdaScale step counts its gain even where its rate was bounded.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> proposed = Decision(next_batch_size=64, base_steps=1, lr_multiplier=9.0)
    >>> ClampLr(max=4.0).update(None, seen, proposed)[1].reason
    'lr x9 bounded to x4'

    Args:
        min, max: factors on the base learning rate, 0 <= min <= max.

    Raises:
        ValueError: bounds out of order or below 0.

    Reference: none.
    """

    min: float = 0.0
    max: float = math.inf

    bounds = frozenset({"lr"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.min <= self.max or self.min == math.inf:
            raise ValueError(
                "ClampLr bounds the factor on the learning rate, 0 <= min <= max, as in "
                f"ClampLr(max=16.0); got {self}."
            )

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        wanted = proposed.lr_multiplier
        if self.min <= wanted <= self.max:
            return state, proposed
        bound = self.min if wanted < self.min else self.max
        # bound / wanted * wanted need not be bound in floating point, so it is set, not scaled
        return state, proposed.rated(bound, because=f"lr x{wanted:.4g} bounded to x{bound:.4g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitGrowth(DefaultFacts):
    """Keeps the next batch within a factor of the batch in hand.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> proposed = Decision(next_batch_size=500, base_steps=1)
    >>> LimitGrowth().update(None, seen, proposed)[1].reason
    'growth from 64 limited to 128'

    Args:
        factor: most growth in one step, 1 or more. One more sample is always allowed where it is
            above 1, so that a small batch is never stuck.
        shrink: least part of the batch in hand that stays, in (0, 1]; 1 never shrinks. None for
            no limit: a batch that was too large costs samples, one that is too small costs the run.

    Raises:
        ValueError: a factor below 1 or a shrink outside (0, 1].

    Reference: none.
    """

    factor: float = 2.0
    shrink: float | None = None

    bounds = frozenset({"batch"})

    def __post_init__(self) -> None:
        shrink = 1.0 if self.shrink is None else self.shrink
        if not 1.0 <= self.factor < math.inf or not 0.0 < shrink <= 1.0:
            raise ValueError(
                "LimitGrowth takes a factor of at least 1 and a shrink in (0, 1], as in "
                f"LimitGrowth(factor=2.0, shrink=0.5); got {self}."
            )

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        wanted, now = proposed.next_batch_size, seen.batch_size
        most = max(math.floor(self.factor * now), now + (self.factor > 1.0))
        least = 1 if self.shrink is None else math.ceil(self.shrink * now)
        size = min(max(wanted, least), most)
        if size == wanted:
            return state, proposed
        return state, proposed.resized(size, because=_limited(size, now=now))


def _limited(size: int, *, now: int) -> str:
    if size == now:
        return f"batch kept at {now}"
    return f"{'growth' if size > now else 'shrinking'} from {now} limited to {size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The last noise scale that was known, in samples; `inf` before."""

    noise_scale: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampToNoiseScale(DefaultFacts):
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

    needs = frozenset({"moments"})
    bounds = frozenset({"batch"})

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
