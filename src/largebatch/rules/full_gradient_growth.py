"""Growth by the norm of the full gradient: each stage ends at a threshold, lower than the last.

    b_m = min(b_max, ceil(b_0 delta^m)),    eta_m = eta_0 gamma^m,    eps_m = eps_0 sqrt(b_0 / b_m)
    every `check` steps:  m <- m + 1  where  |grad f| <= eps_m  and  b_m < b_max

The critical batch goes as 1 / eps^2, and so does the batch of a stage. Each check costs a gradient
of every sample of the data set; `AdaptiveGrowth` takes the noise of the step instead.

Umeda, Iiduka: Adaptive Batch Size and Learning Rate Scheduler, 2025, arXiv 2508.05302. Their
program checks before the update of each 1000th step and raises the rate for that update, whose
gradient is the old batch's. One difference is ours: batch and rate change in the step after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.covering_stages import covering_stages
from largebatch.rules.sizes import asking
from largebatch.rules.stages import Stages


def threshold(*, eps0: float, first: float, batch: float, rate: float = 1.0) -> float:
    """eps_0 sqrt(b_0 rate / b), below which the norm of the full gradient ends a stage.

    >>> threshold(eps0=0.5, first=8, batch=32), threshold(eps0=0.5, first=8, batch=32, rate=4)
    (0.25, 0.5)

    Args:
        eps0: at the first batch.
        first, batch: of the first stage and of this one, in samples.
        rate: of this stage over the first one's; 1 as the paper has it.
    """
    return eps0 * math.sqrt(first * rate / batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedStage:
    """The run's first batch in samples, 0 before it, and the stage of the batch in hand."""

    first: int = 0
    stage: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FullGradientGrowth(DefaultFacts):
    """Goes to the next stage, batch and rate, when the full gradient is at most the threshold.

    At most one stage a check, never back, and none where the norm is not finite; at the largest
    batch it checks no more. The meter needs the data: `lb.Meter(model,
    full=lb.FullGradient(dataset, loss))`.

    >>> seen = Measurement(step=999, samples=7992, base_steps=999, batch_size=8,
    ...     base_batch_size=8, full_sqnorm=0.16)
    >>> rule, proposed = FullGradientGrowth(), Decision(next_batch_size=8, base_steps=1)
    >>> rule.update(rule.init(), seen, proposed)[1].reason
    'full gradient 0.4 <= 0.5; stage 2 of 21; batch 16'

    Args:
        eps0: threshold of the first stage, above 0, in units of the gradient: as small as its norm
            gets at the first batch. Below what that batch's noise leaves, no stage ever ends.
        stages: the table; `covering_stages` ends at no batch that a data set has.
        max: largest batch in samples; None for the data set.
        check: optimizer steps from one check to the next, at least 1. The check is in the last of
            them, before its update; the run's first step has none. For `Every` around it: 1.
        consistent: whether the threshold is eps_0 sqrt(b_0 eta_m / (b_m eta_0)). The floor of the
            squared norm goes as eta / b, so that with a rate that grows the paper's threshold falls
            faster than what can be reached, and the run stays in a stage. Derived here.

    Raises:
        ValueError: an eps0 that is not above 0, or a batch or a check below 1.

    Reference: Umeda, Iiduka, 2025, arXiv 2508.05302; its experiments have these defaults and a
    largest batch of 4096.
    """

    eps0: float = 0.5
    stages: Stages = field(default_factory=lambda: covering_stages(delta=2.0, gamma=1.4))
    max: int | None = None
    check: int = 1000
    consistent: bool = False

    needs = frozenset({"full_sqnorm"})
    changes = frozenset({"batch", "lr"})

    def __post_init__(self) -> None:
        sound = 0.0 < self.eps0 < math.inf and self.check >= 1
        if not sound or (self.max is not None and self.max < 1):
            raise ValueError(
                "FullGradientGrowth takes a threshold above 0, a check in every so many steps, at "
                "least 1, and a largest batch of at least 1, as in FullGradientGrowth(eps0=0.5, "
                f"max=4096, check=1000); got eps0={self.eps0!r}, max={self.max!r}, "
                f"check={self.check!r}."
            )

    def init(self) -> CheckedStage:
        return CheckedStage()

    def update(
        self, state: CheckedStage, seen: Measurement, proposed: Decision
    ) -> tuple[CheckedStage, Decision]:
        state = CheckedStage(first=state.first or proposed.next_batch_size, stage=state.stage)
        rate = self.stages.rate(state.stage)
        decision = proposed.scaled(rate, because=f"growth x{rate:.4g}" if rate != 1.0 else "")
        stage, because = self._test(state, seen)
        after = CheckedStage(first=state.first, stage=stage)
        size = self._size(after, seen)
        if stage > state.stage:
            because = f"{because}; stage {stage + 1} of {len(self.stages)}; batch {size}"
        decision = decision.resized(size, because=because)
        if self._due(seen.step + 1) and self._goes_on(after, seen):
            decision = asking(decision, self.needs)
        return after, decision

    def _test(self, state: CheckedStage, seen: Measurement) -> tuple[int, str]:
        """The stage after this step, and what was found."""
        checked = seen.full_sqnorm is not None and self._due(seen.step)
        if seen.full_sqnorm is None or not checked or not self._goes_on(state, seen):
            return state.stage, ""
        norm = math.sqrt(seen.full_sqnorm)
        if not math.isfinite(norm):
            return state.stage, "full gradient not finite"
        relative = self.stages.rate(state.stage) / self.stages.rate(0)
        level = threshold(
            eps0=self.eps0,
            first=self._size(CheckedStage(first=state.first), seen),
            batch=self._size(state, seen),
            rate=relative if self.consistent else 1.0,
        )
        passed = norm <= level
        found = f"full gradient {norm:.4g} {'<=' if passed else '>'} {level:.4g}"
        return state.stage + passed, found

    def _due(self, step: int) -> bool:
        return (step + 1) % self.check == 0

    def _goes_on(self, state: CheckedStage, seen: Measurement) -> bool:
        """Whether there is a stage after this one, whose batch is below the largest."""
        most = [size for size in (self.max, seen.dataset_size) if size is not None]
        last = state.stage + 1 == len(self.stages)
        return not last and self._size(state, seen) < min(most, default=math.inf)

    def _size(self, state: CheckedStage, seen: Measurement) -> int:
        size = self.stages.size(state.stage, first=state.first, seen=seen)
        return size if self.max is None else min(size, self.max)
