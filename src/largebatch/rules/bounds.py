"""Bounds on what the rules before them propose; a bound that acts says so in the reason.

Nothing may propose a learning rate or a batch after its bound. Among several bounds the last word
is the last one's: put `ClampBatch`, the hard limit, after `LimitGrowth`. The bound that remembers,
`Hysteresis`, has its own file.

A batch above the noise scale costs more samples than it saves, so `ClampToNoiseScale` bounds it:
McCandlish et al., An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from largebatch.core.codec import LATER
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.moving_moments import MovingMoments
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import (
    BEYOND,
    Statistic,
    asking,
    check_above_zero,
    check_statistic,
    whole_batch,
)


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
class GrowthWindow:
    """The state of `LimitGrowth`.

    Args:
        step: in which the window began.
        batch_size: in hand in that step; 0 before the first.
        last: the batch that was decided last; an epoch's last batch may be smaller.
    """

    step: int = 0
    batch_size: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitGrowth(DefaultFacts):
    """Keeps the next batch within a factor of the batch in hand.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> proposed = Decision(next_batch_size=500, base_steps=1)
    >>> LimitGrowth().update(None, seen, proposed)[1].reason
    'growth from 64 limited to 128'

    Args:
        factor: most growth in a window, 1 or more. One more sample is always allowed where it is
            above 1, so that a small batch is never stuck.
        shrink: least part of the batch in hand that stays, in (0, 1]; 1 never shrinks. None for
            no limit: a batch that was too large costs samples, one that is too small costs the run.
        over: optimizer steps of a window, at least 1. The factor is then on the batch with which
            the window began; windows follow each other.
        to_base: whether the batch may shrink to the base batch and not below it.

    Raises:
        ValueError: a factor below 1, a shrink outside (0, 1], or a window below 1 step.

    Reference: none.
    """

    factor: float = 2.0
    shrink: float | None = None
    over: int = field(default=1, metadata=LATER)
    to_base: bool = field(default=False, metadata=LATER)

    bounds = frozenset({"batch"})

    def __post_init__(self) -> None:
        shrink = 1.0 if self.shrink is None else self.shrink
        if not 1.0 <= self.factor < math.inf or not 0.0 < shrink <= 1.0 or self.over < 1:
            raise ValueError(
                "LimitGrowth takes a factor of at least 1, a shrink in (0, 1] and a window of at "
                f"least 1 step, as in LimitGrowth(factor=2.0, shrink=0.5, over=10); got {self}."
            )

    def init(self) -> GrowthWindow | None:
        return GrowthWindow() if self.over > 1 else None

    def update(
        self, state: GrowthWindow | None, seen: Measurement, proposed: Decision
    ) -> tuple[GrowthWindow | None, Decision]:
        wanted, now = proposed.next_batch_size, seen.batch_size
        start = now
        if state is not None:
            now = max(now, state.last)
            if not state.batch_size or seen.step >= state.step + self.over:
                state = GrowthWindow(step=seen.step, batch_size=now)
            start = min(state.batch_size, now)
        # 1.15 * 100 is a whole number that floats miss
        most = max(math.floor(self.factor * start * (1.0 + 1e-12)), start + (self.factor > 1.0))
        most = max(most, now)  # within a window the batch may have grown already
        least = 1 if self.shrink is None else math.ceil(self.shrink * now * (1.0 - 1e-12))
        if self.to_base:
            least = max(least, min(seen.base_batch_size, now))
        size = min(max(wanted, least), most)
        if state is not None:
            state = replace(state, last=size)
        if size == wanted:
            return state, proposed
        return state, proposed.resized(size, because=self._limited(wanted, size, now=now))

    def _limited(self, wanted: int, size: int, *, now: int) -> str:
        if size != now:
            return f"{'growth' if size > now else 'shrinking'} from {now} limited to {size}"
        if wanted > now and self.over > 1:
            return f"batch kept at {now}, at most x{self.factor:.4g} in {self.over} steps"
        return f"batch kept at {now}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampToNoiseScale(DefaultFacts):
    """Lets the next batch grow to at most `kappa` times the noise scale.

    The batch in hand stays if it is above that, and until the noise scale is known: this bounds
    growth. It may grow while even the low end of the interval allows more than the batch in hand,
    to the estimate and to twice the low end at most. The noise scale is that of the running
    averages (`MovingMoments`), also in steps that measure nothing.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> rule, proposed = ClampToNoiseScale(), Decision(next_batch_size=64, base_steps=1)
    >>> state = rule.init()
    >>> for step in range(4):
    ...     seen = Measurement(step=step, samples=8 * step, base_steps=step, batch_size=8,
    ...         base_batch_size=8, moments=m)
    ...     state, decision = rule.update(state, seen, proposed)
    >>> decision.reason
    'batch 64 bounded to 16, noise scale 16 [16, 16]'

    Args:
        kappa: batch / noise scale that still pays, above 0.
        statistic: "moments" of the bare gradient (SGD), or "preconditioned_moments", of the
            gradient as the optimizer divides it (Adam, Adagrad).

    Raises:
        ValueError: a kappa that is not above 0, or an unknown statistic.

    Reference: arXiv 1812.06162; as the critical batch at which growth ends, arXiv 2510.14717.
    """

    kappa: float = 1.0
    statistic: Statistic = field(default="moments", metadata=LATER)

    bounds = frozenset({"batch"})

    def __post_init__(self) -> None:
        check_above_zero(self, example="ClampToNoiseScale(kappa=1.0)", kappa=self.kappa)
        check_statistic(self, self.statistic)

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
        if moments is not None:
            state = state.add(moments, seen)
        wanted, now = proposed.next_batch_size, seen.batch_size
        if wanted <= now:
            return state, proposed
        noise = state.noise_scale()
        if noise is None:
            because = f"batch {wanted} held at {now}, noise scale not known yet"
            return state, proposed.resized(now, because=because)
        low = self.kappa * noise.low
        end = low if math.isfinite(low) else now  # infinite: of negative squared norms
        most = min(self.kappa * noise.value, BEYOND * end) if low > now else now
        if wanted <= most:
            return state, proposed
        size = min(max(whole_batch(most, ranks=seen.ranks), now), wanted)
        because = f"batch {wanted} bounded to {size}, noise scale {noise}"
        return state, proposed.resized(size, because=because)
