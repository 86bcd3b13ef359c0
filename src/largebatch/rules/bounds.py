"""Limit the batch size and the learning rate that the rules before a bound propose.

The reason of a decision shows every change that a bound made. No rule may propose a learning rate
or a batch size after its bound. If several bounds follow each other, the last one decides: put
`ClampBatch`, the hard limit, after `LimitGrowth`. `Hysteresis`, a bound that remembers earlier
tests, has its own file.

If the batch grows beyond the noise scale, the number of samples rises by a larger factor than the
number of steps falls. Therefore `ClampToNoiseScale` limits the batch: McCandlish, Kaplan, Amodei,
OpenAI Dota Team: An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162.
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
    """Keep the next batch size between `min` and `max`, and a multiple of `multiple_of`.

    A batch size is rounded up to the multiple, because rules propose the smallest batch that
    suffices. The size is rounded down only if rounding up would exceed `max`.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> rule, proposed = ClampBatch(max=512, multiple_of=64), Decision(
    ...     next_batch_size=700, base_steps=1)
    >>> rule.update(None, seen, proposed)[1].reason
    'batch size 700 changed to 512 by ClampBatch'

    Args:
        min, max: Smallest and largest batch size, in samples over all ranks; `max=None` sets no
            upper bound.
        multiple_of: Number of samples of which every batch size must be a multiple.

    Raises:
        ValueError: If a bound is below 1 or not whole, or if no multiple lies between the bounds.

    Reference: none.
    """

    min: int = 1
    max: int | None = None
    multiple_of: int = 1

    bounds = frozenset({"batch"})
    references = ()

    def __post_init__(self) -> None:
        given = [self.min, self.multiple_of, self.max or 1]
        sound = all(isinstance(size, int) for size in given) and min(given[:2]) >= 1
        if not sound or (self.max is not None and self._up(self.min) > self.max):
            raise ValueError(
                f"{self} was given, but ClampBatch needs whole numbers with 1 <= min <= max, and a "
                "multiple of multiple_of between min and max. "
                "Example: ClampBatch(min=64, max=4096, multiple_of=64)"
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
        because = f"batch size {wanted} changed to {size} by ClampBatch"
        return state, proposed.resized(size, because=because)

    def _up(self, size: int) -> int:
        return -(-size // self.multiple_of) * self.multiple_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampLr(DefaultFacts):
    """Keep the factor on the learning rate between `min` and `max`.

    The counter of base steps is left unchanged: a step of AdaScale counts as its whole gain even if
    the learning rate was limited.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> proposed = Decision(next_batch_size=64, base_steps=1, lr_multiplier=9.0)
    >>> ClampLr(max=4.0).update(None, seen, proposed)[1].reason
    'lr x9 changed to x4 by ClampLr'

    Args:
        min, max: Smallest and largest factor on the base learning rate, 0 <= min <= max.

    Raises:
        ValueError: If `min` is below 0, infinite or above `max`.

    Reference: none.
    """

    min: float = 0.0
    max: float = math.inf

    bounds = frozenset({"lr"})
    references = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.min <= self.max or self.min == math.inf:
            raise ValueError(
                f"{self} was given, but the factors on the learning rate must satisfy "
                "0 <= min <= max. Example: ClampLr(max=16.0)"
            )

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        wanted = proposed.lr_multiplier
        if self.min <= wanted <= self.max:
            return state, proposed
        bound = self.min if wanted < self.min else self.max
        # In floating point, wanted * (bound / wanted) may differ from bound, so the factor is set.
        because = f"lr x{wanted:.4g} changed to x{bound:.4g} by ClampLr"
        return state, proposed.rated(bound, because=because)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthWindow:
    """Hold the state of `LimitGrowth`.

    Args:
        step: Optimizer step in which the window began.
        batch_size: Batch size in the first step of the window, in samples; 0 before the first step
            of the run.
        last: Batch size that was decided last. The last batch of an epoch may be smaller than the
            decided batch size.
    """

    step: int = 0
    batch_size: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitGrowth(DefaultFacts):
    """Limit how much the batch size grows or shrinks in one window of steps.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> proposed = Decision(next_batch_size=500, base_steps=1)
    >>> LimitGrowth().update(None, seen, proposed)[1].reason
    'growth from batch size 64 limited to 128, proposed 500'

    Args:
        factor: Largest growth of the batch in one window, 1 or more. If `factor` is above 1, growth
            by one sample is always allowed, so that a small batch can still grow.
        shrink: Smallest allowed fraction of the current batch size, in (0, 1]; 1 never shrinks the
            batch. None lets the batch shrink without a limit.
        over: Length of a window in optimizer steps, at least 1. The growth is measured from the
            batch size at the start of the window. Each window begins where the window before ends.
        to_base: Whether the batch may not shrink below the base batch.

    Raises:
        ValueError: If `factor` is below 1, `shrink` is outside (0, 1], or `over` is below 1.

    Reference: none.
    """

    factor: float = 2.0
    shrink: float | None = None
    over: int = field(default=1, metadata=LATER)
    to_base: bool = field(default=False, metadata=LATER)

    bounds = frozenset({"batch"})
    references = ()

    def __post_init__(self) -> None:
        shrink = 1.0 if self.shrink is None else self.shrink
        if not 1.0 <= self.factor < math.inf or not 0.0 < shrink <= 1.0 or self.over < 1:
            raise ValueError(
                f"{self} was given, but factor must be at least 1, shrink in (0, 1] and `over` "
                "at least 1 step. Example: LimitGrowth(factor=2.0, shrink=0.5, over=10)"
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
        # 1.15 * 100 is 115, but floating point gives a slightly smaller number.
        most = max(math.floor(self.factor * start * (1.0 + 1e-12)), start + (self.factor > 1.0))
        most = max(most, now)  # the batch may already have grown in this window
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
        """Return the reason for a batch size that differs from the proposed one."""
        if size != now:
            change = "growth" if size > now else "shrinking"
            return f"{change} from batch size {now} limited to {size}, proposed {wanted}"
        kept = f"batch size kept at {now} by LimitGrowth"
        if wanted > now and self.over > 1:
            return f"{kept}, at most x{self.factor:.4g} in {self.over} steps"
        return f"{kept}, proposed {wanted}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampToNoiseScale(DefaultFacts):
    """Let the next batch grow to at most `kappa` times the noise scale.

    `ClampToNoiseScale` limits growth only: it never shrinks the batch, and it keeps the batch size
    until the noise scale is known. The batch may grow only if the lower bound of the noise scale's
    interval, times kappa, is above the current batch size. The growth ends at kappa times the
    estimate of the noise scale, and at twice kappa times the lower bound. The noise scale comes
    from running averages (`MovingMoments`), also in steps without a measurement.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> rule, proposed = ClampToNoiseScale(), Decision(next_batch_size=64, base_steps=1)
    >>> state = rule.init()
    >>> for step in range(4):
    ...     seen = Measurement(step=step, samples=8 * step, base_steps=step, batch_size=8,
    ...         base_batch_size=8, moments=m)
    ...     state, decision = rule.update(state, seen, proposed)
    >>> decision.reason
    'batch size 64 limited to 16 by the noise scale 16 [16, 16]'

    Args:
        kappa: Largest useful batch size divided by the noise scale, above 0.
        statistic: "moments" for the raw gradient (SGD), or "preconditioned_moments" for the
            gradient divided as the optimizer divides it (Adam, Adagrad).

    Raises:
        ValueError: If `kappa` is not above 0, or if the statistic is unknown.

    Reference: McCandlish et al., 2018, arXiv 1812.06162.
    """

    kappa: float = 1.0
    statistic: Statistic = field(default="moments", metadata=LATER)

    bounds = frozenset({"batch"})
    references = ("mccandlish2018empirical",)

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
            because = f"batch size {wanted} held at {now}, noise scale not known yet"
            return state, proposed.resized(now, because=because)
        low = self.kappa * noise.low
        end = low if math.isfinite(low) else now  # infinite if the squared norm is negative
        most = min(self.kappa * noise.value, BEYOND * end) if low > now else now
        if wanted <= most:
            return state, proposed
        size = min(max(whole_batch(most, ranks=seen.ranks), now), wanted)
        because = f"batch size {wanted} limited to {size} by the noise scale {noise}"
        return state, proposed.resized(size, because=because)
