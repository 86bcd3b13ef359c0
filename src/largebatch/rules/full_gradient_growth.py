"""Grow the batch when the norm of the full gradient falls below the threshold of its stage.

    b_m = min(b_max, ceil(b_0 * delta^m)),  eta_m = eta_0 * gamma^m
    eps_m = eps_0 * sqrt(b_0 / b_m)
    every `check` steps:  m <- m + 1  if  |grad f| <= eps_m  and  b_m < b_max

For a threshold eps of the gradient's norm, the critical batch size grows as 1 / eps^2, and so does
the batch size of the stages. Each check costs the gradient of every sample in the data set.
`AdaptiveGrowth` needs no gradient of the whole data set: it uses the noise of the training steps.

Umeda, Iiduka: Adaptive Batch Size and Learning Rate Scheduler for Stochastic Gradient Descent Based
on Minimization of Stochastic First-order Oracle Complexity, 2025, arXiv 2508.05302. The program of
these authors checks before the update of each 1000th step, and raises the learning rate for the
same update. In the authors' program, the first update with a raised learning rate still uses a
gradient of the old batch size. In this package, batch size and learning rate change in the step
after the check.
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
    """Return eps_0 * sqrt(b_0 * rate / b), the largest norm of the full gradient that ends a stage.

    >>> threshold(eps0=0.5, first=8, batch=32), threshold(eps0=0.5, first=8, batch=32, rate=4)
    (0.25, 0.5)

    Args:
        eps0: Threshold of the first stage, in units of the gradient.
        first: Batch size of the first stage, in samples.
        batch: Batch size of the current stage, in samples.
        rate: Learning rate of the current stage divided by the learning rate of the first stage; 1
            gives the paper's threshold.
    """
    return eps0 * math.sqrt(first * rate / batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedStage:
    """Hold the state of `FullGradientGrowth`.

    Args:
        first: Batch size of the run's first step, in samples; 0 before the first step.
        stage: Index of the current stage, from 0.
    """

    first: int = 0
    stage: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FullGradientGrowth(DefaultFacts):
    """Go to the next stage of batch size and learning rate when the full gradient is small enough.

    Each check can begin at most one new stage, and no check returns to an earlier stage. A gradient
    norm that is not finite begins no stage. At the largest batch size the checks end. The meter
    needs the data set: `lb.Meter(model, full=lb.FullGradient(dataset, loss))`.

    >>> seen = Measurement(step=999, samples=7992, base_steps=999, batch_size=8,
    ...     base_batch_size=8, full_sqnorm=0.16)
    >>> rule, proposed = FullGradientGrowth(), Decision(next_batch_size=8, base_steps=1)
    >>> rule.update(rule.init(), seen, proposed)[1].reason
    "full gradient's norm 0.4 <= threshold 0.5; stage 2 of 21 begins; batch size 16"

    Args:
        eps0: Threshold of the first stage, above 0, in units of the gradient. Choose the norm that
            the full gradient reaches at the first batch size. If eps0 is below the smallest norm
            that training reaches at the first batch size, no stage ever ends.
        stages: Table of batch sizes and learning rates. The default, `covering_stages`, is long
            enough for every data set.
        max: Largest batch size in samples; None for the size of the data set.
        check: Number of optimizer steps from one check to the next, at least 1. A check happens in
            every `check`-th step, before the update of the weights. Pass 1 if `Every` wraps this
            rule.
        consistent: Whether the threshold is eps_0 * sqrt(b_0 * eta_m / (b_m * eta_0)). The smallest
            squared norm that training reaches is proportional to eta / b, the learning rate divided
            by the batch size. Therefore, if the learning rate grows, the paper's threshold falls
            faster than the norm can, and the run remains in one stage. We derived the threshold of
            `consistent=True`; the paper does not contain this threshold.

    Raises:
        ValueError: If `eps0` is not above 0, or if `max` or `check` is below 1.

    Reference: Umeda, Iiduka, 2025, arXiv 2508.05302; the experiments of the paper use the default
    values of this class and a largest batch of 4096.
    """

    eps0: float = 0.5
    stages: Stages = field(default_factory=lambda: covering_stages(delta=2.0, gamma=1.4))
    max: int | None = None
    check: int = 1000
    consistent: bool = False

    needs = frozenset({"full_sqnorm"})
    changes = frozenset({"batch", "lr"})
    references = ("umeda2025adaptive",)

    def __post_init__(self) -> None:
        sound = 0.0 < self.eps0 < math.inf and self.check >= 1
        if not sound or (self.max is not None and self.max < 1):
            raise ValueError(
                f"eps0={self.eps0!r}, max={self.max!r} and check={self.check!r} were given, but "
                "eps0 must be above 0, max must be None or at least 1 sample, and check at least "
                "1 step. "
                "Example: FullGradientGrowth(eps0=0.5, max=4096, check=1000)"
            )

    def init(self) -> CheckedStage:
        return CheckedStage()

    def update(
        self, state: CheckedStage, seen: Measurement, proposed: Decision
    ) -> tuple[CheckedStage, Decision]:
        state = CheckedStage(first=state.first or proposed.next_batch_size, stage=state.stage)
        rate = self.stages.rate(state.stage)
        decision = proposed.scaled(rate, because=f"growth: lr x{rate:.4g}" if rate != 1.0 else "")
        stage, because = self._test(state, seen)
        after = CheckedStage(first=state.first, stage=stage)
        size = self._size(after, seen)
        if stage > state.stage:
            because += f"; stage {stage + 1} of {len(self.stages)} begins; batch size {size}"
        decision = decision.resized(size, because=because)
        if self._due(seen.step + 1) and self._can_grow(after, seen):
            decision = asking(decision, self.needs)
        return after, decision

    def _test(self, state: CheckedStage, seen: Measurement) -> tuple[int, str]:
        """Return the stage after the current step, and what the check found."""
        checked = seen.full_sqnorm is not None and self._due(seen.step)
        if seen.full_sqnorm is None or not checked or not self._can_grow(state, seen):
            return state.stage, ""
        norm = math.sqrt(seen.full_sqnorm)
        if not math.isfinite(norm):
            return state.stage, "full gradient's norm is not finite"
        relative = self.stages.rate(state.stage) / self.stages.rate(0)
        level = threshold(
            eps0=self.eps0,
            first=self._size(CheckedStage(first=state.first), seen),
            batch=self._size(state, seen),
            rate=relative if self.consistent else 1.0,
        )
        passed = norm <= level
        sign = "<=" if passed else ">"
        found = f"full gradient's norm {norm:.4g} {sign} threshold {level:.4g}"
        return state.stage + passed, found

    def _due(self, step: int) -> bool:
        return (step + 1) % self.check == 0

    def _can_grow(self, state: CheckedStage, seen: Measurement) -> bool:
        """Return whether a later stage exists and the batch is below its largest size."""
        most = [size for size in (self.max, seen.dataset_size) if size is not None]
        last = state.stage + 1 == len(self.stages)
        return not last and self._size(state, seen) < min(most, default=math.inf)

    def _size(self, state: CheckedStage, seen: Measurement) -> int:
        size = self.stages.size(state.stage, first=state.first, seen=seen)
        return size if self.max is None else min(size, self.max)
