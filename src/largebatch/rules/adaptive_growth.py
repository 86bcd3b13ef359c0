"""Growth by the noise: the next stage begins when the noise scale has reached its batch.

    stage m + 1 begins after `patience` tests in a row with  kappa variance / sqnorm >= its batch

While the gradient shrinks its noise scale rises, and with it the batch beyond which more samples a
step do not pay. Umeda and Iiduka (2025, arXiv 2508.05302) let the norm of the full gradient tell
that, which costs passes over the data; here the estimate is that of the step itself.

McCandlish et al.: An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162, for the noise
scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import asking, noise_ratio
from largebatch.rules.stages import Stages, growing_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveGrowthState:
    """The run's first batch in samples, 0 before it; the stage of the batch in hand; and how many
    tests in a row asked for the next one."""

    first: int = 0
    stage: int = 0
    asked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveGrowth(DefaultFacts):
    """Goes to the next stage, batch and rate, when the noise scale asks for its batch.

    Never back, and at most one stage at a time; a stage in which the noise scale does not rise
    lasts. A single step's noise scale is rough: put `Averaged` around it, and `Every` around that.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8, moments=m)
    >>> rule, proposed = AdaptiveGrowth(patience=1), Decision(next_batch_size=8, base_steps=1)
    >>> rule.update(rule.init(), seen, proposed)[1].reason
    'noise scale 16 x 1 for 16; stage 2 of 21; batch 16'

    Args:
        stages: the table; it ends where the batch would not grow any more.
        kappa: batch / noise scale that still pays, above 0.
        patience: tests in a row that must ask, at least 1.

    Raises:
        ValueError: a kappa that is not above 0, or a patience below 1.

    Reference: arXiv 2508.05302 for the stages; the trigger is ours.
    """

    stages: Stages = field(default_factory=lambda: growing_stages(21, delta=2.0))
    kappa: float = 1.0
    patience: int = 3

    needs = frozenset({"moments"})
    changes = frozenset({"batch", "lr"})

    def __post_init__(self) -> None:
        if not 0.0 < self.kappa < math.inf or self.patience < 1:
            raise ValueError(
                "AdaptiveGrowth takes a kappa above 0 and a patience of at least one test, as in "
                f"AdaptiveGrowth(kappa=1.0, patience=3); got kappa={self.kappa!r}, "
                f"patience={self.patience!r}."
            )

    def init(self) -> AdaptiveGrowthState:
        return AdaptiveGrowthState()

    def update(
        self, state: AdaptiveGrowthState, seen: Measurement, proposed: Decision
    ) -> tuple[AdaptiveGrowthState, Decision]:
        first = state.first or proposed.next_batch_size
        rate = self.stages.rate(state.stage)
        decision = asking(proposed, self.needs).scaled(
            rate, because=f"growth x{rate:.4g}" if rate != 1.0 else ""
        )
        stage, asked, because = self._test(state, seen, first=first)
        size = self.stages.size(stage, first=first, seen=seen)
        if stage > state.stage:
            because = f"{because}; stage {stage + 1} of {len(self.stages)}; batch {size}"
        return AdaptiveGrowthState(first=first, stage=stage, asked=asked), decision.resized(
            size, because=because
        )

    def _test(
        self, state: AdaptiveGrowthState, seen: Measurement, *, first: int
    ) -> tuple[int, int, str]:
        """The stage and the tests in a row after this step, and what was found."""
        m = state.stage
        if seen.moments is None or m + 1 == len(self.stages):
            return m, state.asked, ""
        now = self.stages.size(m, first=first, seen=seen)
        after = self.stages.size(m + 1, first=first, seen=seen)
        ratio = noise_ratio(variance=seen.moments.variance, sqnorm=seen.moments.sqnorm)
        if ratio is None or after <= now:
            return m, state.asked, ""
        asked = state.asked + 1 if self.kappa * ratio >= after else 0
        found = f"noise scale {ratio:.4g} x {self.kappa:.4g} for {after}"
        if asked < self.patience:
            return m, asked, found
        return m + 1, 0, found
