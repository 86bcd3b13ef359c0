"""Begin the next growth stage when the noise scale has reached the batch size of that stage.

    stage m + 1 begins after `patience` tests in a row with  kappa * noise scale >= B of stage m + 1
    stage m - 1 begins again after `patience` tests in a row with  kappa * noise scale < current B

The stage changes only if the current batch size also lies outside the confidence interval of kappa
* noise scale. The noise scale rises while the gradient shrinks. Beyond the noise scale, more
samples per step hardly reduce the number of steps. Umeda and Iiduka (2025, arXiv 2508.05302) test
the norm of the full gradient, which requires passes over the data set. `AdaptiveGrowth` instead
estimates the noise scale from the training steps.

McCandlish, Kaplan, Amodei, OpenAI Dota Team: An Empirical Model of Large-Batch Training, 2018,
arXiv 1812.06162, defines the noise scale.
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
    """Hold the state of `AdaptiveGrowth`.

    Args:
        first: Batch size of the run's first step, in samples; 0 before the first step.
        stage: Index of the current stage, from 0.
        asked: Number of tests in a row that asked for the next stage. A negative number counts
            tests in a row that asked for the previous stage.
        past: Running averages of the gradient's moments.
    """

    first: int = 0
    stage: int = 0
    asked: int = 0
    past: MovingMoments = field(default_factory=MovingMoments, metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveGrowth(DefaultFacts):
    """Go to the next stage when the noise scale has reached the batch size of that stage.

    The rule returns to the previous stage if the whole confidence interval of the noise scale lies
    below the current batch size. The rule changes by at most one stage at a time. The noise scale
    comes from running averages (`MovingMoments`).

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=3.0, variance=16.0)
    >>> rule, proposed = AdaptiveGrowth(patience=1), Decision(next_batch_size=8, base_steps=1)
    >>> state = rule.init()
    >>> for step in range(4):
    ...     seen = Measurement(step=step, samples=8 * step, base_steps=step, batch_size=8,
    ...         base_batch_size=8, moments=m)
    ...     state, decision = rule.update(state, seen, proposed)
    >>> decision.reason.split("; ")[1:]
    ['stage 2 of 21 begins', 'batch size 16']

    Args:
        stages: Table of batch sizes and learning rates. The rule stops at the stage after which the
            batch size no longer grows.
        kappa: Largest useful batch size divided by the noise scale, above 0.
        patience: Number of tests in a row that must ask for a change, at least 1.
        statistic: "moments" for the raw gradient (SGD), or "preconditioned_moments" for the
            gradient divided as the optimizer divides it (Adam, Adagrad).

    Raises:
        ValueError: If `kappa` is not above 0, if `patience` is below 1, or if the statistic is
            unknown.

    Reference: Umeda, Iiduka, 2025, arXiv 2508.05302, for the stages; McCandlish et al., 2018, arXiv
    1812.06162, for the noise scale. The test of `AdaptiveGrowth` is our own and is not in the
    papers.
    """

    stages: Stages = field(default_factory=lambda: covering_stages(delta=2.0))
    kappa: float = 1.0
    patience: int = 3
    statistic: Statistic = field(default="moments", metadata=LATER)

    changes = frozenset({"batch", "lr"})
    references = ("umeda2025adaptive", "mccandlish2018empirical")

    def __post_init__(self) -> None:
        check_statistic(self, self.statistic)
        if not 0.0 < self.kappa < math.inf or self.patience < 1:
            raise ValueError(
                f"kappa={self.kappa!r} and patience={self.patience!r} were given, but kappa must "
                "be above 0 and patience at least 1 test. "
                "Example: AdaptiveGrowth(kappa=1.0, patience=3)"
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
            rate, because=f"growth: lr x{rate:.4g}" if rate != 1.0 else ""
        )
        stage, asked, because, past = state.stage, state.asked, "", state.past
        moments = getattr(seen, self.statistic)
        if moments is not None:
            past = past.add(moments, seen)
            stage, asked, because = self._tested(state, past.noise_scale(), seen, hand, first=first)
        size = self.stages.size(stage, first=first, seen=seen)
        if stage != state.stage:
            begins = "begins" if stage > state.stage else "begins again"
            because += f"; stage {stage + 1} of {len(self.stages)} {begins}; batch size {size}"
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
        """Return the next stage, the number of tests in a row, and what the test found."""
        if noise is None:
            return state.stage, 0, "noise scale not known yet"
        at: dict[str, Any] = {"first": first, "seen": seen}
        stages, m = self.stages, state.stage
        size, pays = stages.size(m, **at), scaled(noise, factor=self.kappa)
        capped = hand < size  # a bound after this rule limits the batch
        after = None if capped else stages.next_larger(m, **at)
        before = stages.last_smaller(self._reached(m, hand, **at), **at)
        size = min(size, hand)
        found = f"noise scale {noise} x kappa {self.kappa:.4g}"
        target, asked = None, 0
        if after is not None:
            larger = stages.size(after, **at)
            found += f", next stage needs {larger}"
            if pays.low > size and pays.value >= larger:
                target, asked = after, max(state.asked, 0) + 1
        if before is not None and pays.high < size:
            target, asked = before, min(state.asked, 0) - 1
        if target is None:
            return m, asked, found
        wish = "larger" if asked > 0 else "smaller"
        found += f", {abs(asked)} of {self.patience} tests in a row ask for a {wish} batch"
        if abs(asked) < self.patience:
            return m, asked, found
        return target, 0, found

    def _reached(self, stage: int, batch_size: int, *, first: int, seen: Measurement) -> int:
        """Return the stage up to `stage` to which `batch_size` belongs.

        A bound after `AdaptiveGrowth` may have kept the batch smaller than the batch size of the
        stage. A batch size between the batch sizes of two stages, for example after rounding,
        belongs to the later stage.
        """
        at: dict[str, Any] = {"first": first, "seen": seen}
        while stage > 0 and self.stages.size(stage - 1, **at) >= batch_size:
            stage -= 1
        return stage
