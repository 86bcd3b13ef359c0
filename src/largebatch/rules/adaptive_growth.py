"""Growth by the noise: the next stage begins when the noise scale has reached its batch.

    stage m + 1 begins after `patience` tests in a row with  kappa x noise scale >= its batch
    stage m - 1 begins again after `patience` tests in a row with  kappa x noise scale < batch

In both the batch in hand lies outside of the interval of kappa x noise scale. While the gradient
shrinks its noise scale rises, and with it the batch beyond which more samples per step do not pay.
Umeda and Iiduka (2025, arXiv 2508.05302) use the norm of the full gradient, which costs passes over
the data; here the estimate is that of the training steps.

McCandlish et al.: An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162, for the noise
scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from largebatch.core.codec import LATER
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.moving_moments import MovingMoments
from largebatch.core.range import Range
from largebatch.core.rule import DefaultFacts
from largebatch.rules.covering_stages import covering_stages
from largebatch.rules.sizes import Statistic, asking, check_statistic, scaled
from largebatch.rules.stages import Stages


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveGrowthState:
    """The state of `AdaptiveGrowth`.

    Args:
        first: the run's first batch in samples; 0 before it.
        stage: of the batch in hand.
        asked: how many tests in a row asked for the next stage; below 0, for the one before.
        past: the running averages.
    """

    first: int = 0
    stage: int = 0
    asked: int = 0
    past: MovingMoments = field(default_factory=MovingMoments, metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveGrowth(DefaultFacts):
    """Goes to the next stage, batch and rate, when the noise scale asks for its batch.

    It goes back if the noise scale is certainly below the batch in hand, and never by more than one
    stage at a time. A stage in which the noise scale does not move lasts. The noise scale is that
    of the running averages (`MovingMoments`).

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> rule, proposed = AdaptiveGrowth(patience=1), Decision(next_batch_size=8, base_steps=1)
    >>> state = rule.init()
    >>> for step in range(4):
    ...     seen = Measurement(step=step, samples=8 * step, base_steps=step, batch_size=8,
    ...         base_batch_size=8, moments=m)
    ...     state, decision = rule.update(state, seen, proposed)
    >>> decision.reason
    'noise scale 16 [16, 16] x 1 for 16; stage 2 of 21; batch 16'

    Args:
        stages: the table; it ends where the batch would not grow any more.
        kappa: batch / noise scale that still pays, above 0.
        patience: tests in a row that must ask, at least 1.
        statistic: "moments" of the bare gradient (SGD), or "preconditioned_moments", of the
            gradient as the optimizer divides it (Adam, Adagrad).

    Raises:
        ValueError: a kappa that is not above 0, a patience below 1, or an unknown statistic.

    Reference: arXiv 2508.05302 for the stages; the trigger is ours.
    """

    stages: Stages = field(default_factory=lambda: covering_stages(delta=2.0))
    kappa: float = 1.0
    patience: int = 3
    statistic: Statistic = field(default="moments", metadata=LATER)

    changes = frozenset({"batch", "lr"})

    def __post_init__(self) -> None:
        check_statistic(self, self.statistic)
        if not 0.0 < self.kappa < math.inf or self.patience < 1:
            raise ValueError(
                "AdaptiveGrowth takes a kappa above 0 and a patience of at least one test, as in "
                f"AdaptiveGrowth(kappa=1.0, patience=3); got kappa={self.kappa!r}, "
                f"patience={self.patience!r}."
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.statistic})

    def init(self) -> AdaptiveGrowthState:
        return AdaptiveGrowthState()

    def update(
        self, state: AdaptiveGrowthState, seen: Measurement, proposed: Decision
    ) -> tuple[AdaptiveGrowthState, Decision]:
        first = state.first or proposed.next_batch_size
        hand = proposed.next_batch_size
        reached = self._reached(state.stage, seen.batch_size, first=first, seen=seen)
        rate = self.stages.rate(reached)
        decision = asking(proposed, self.needs).scaled(
            rate, because=f"growth x{rate:.4g}" if rate != 1.0 else ""
        )
        stage, asked, because, past = state.stage, state.asked, "", state.past
        moments = getattr(seen, self.statistic)
        if moments is not None:
            past = past.add(moments, seen)
            stage, asked, because = self._tested(state, past.noise_scale(), seen, hand, first=first)
        size = self.stages.size(stage, first=first, seen=seen)
        if stage != state.stage:
            because = f"{because}; stage {stage + 1} of {len(self.stages)}; batch {size}"
        return AdaptiveGrowthState(first=first, stage=stage, asked=asked, past=past), (
            decision.resized(size, because=because)
        )

    def _tested(
        self,
        state: AdaptiveGrowthState,
        noise: Range | None,
        seen: Measurement,
        hand: int,
        *,
        first: int,
    ) -> tuple[int, int, str]:
        """Return the stage and the tests in a row after this step, and what was found."""
        if noise is None:
            return state.stage, 0, "noise scale not known yet"
        at: dict[str, Any] = {"first": first, "seen": seen}
        stages, m = self.stages, state.stage
        size, pays = stages.size(m, **at), scaled(noise, factor=self.kappa)
        capped = hand < size  # by a bound after this rule: there is no larger batch to go to
        after = None if capped else stages.next_larger(m, **at)
        before = stages.last_smaller(self._reached(m, hand, **at), **at)
        size = min(size, hand)
        found = f"noise scale {noise} x {self.kappa:.4g}"
        target, asked = None, 0
        if after is not None:
            larger = stages.size(after, **at)
            found += f" for {larger}"
            if pays.low > size and pays.value >= larger:
                target, asked = after, max(state.asked, 0) + 1
        if before is not None and pays.high < size:
            target, asked = before, min(state.asked, 0) - 1
        if target is None or abs(asked) < self.patience:
            return m, asked, found
        return target, 0, found

    def _reached(self, stage: int, batch_size: int, *, first: int, seen: Measurement) -> int:
        """Return the last stage up to this one that has begun with a batch of this size.

        A bound after the rule may have kept the batch from it. A batch that lies between those of
        two stages, as one that was rounded, belongs to the later one.
        """
        at: dict[str, Any] = {"first": first, "seen": seen}
        while stage > 0 and self.stages.size(stage - 1, **at) >= batch_size:
            stage -= 1
        return stage
