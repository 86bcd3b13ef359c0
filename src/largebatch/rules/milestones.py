"""AdaBatch: the batch grows by a factor at given points of the run, whatever the noise.

Devarakonda, Naumov, Garland: AdaBatch: Adaptive Batch Sizes for Training Deep Neural Networks,
2017, arXiv 1712.02029.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import whole_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedMilestones:
    """How many milestones lie behind."""

    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestones(DefaultFacts):
    """Multiplies the batch by `factor` from each of the points `at` on.

    A point is passed by the clocks after the step, so that the first step behind it has the larger
    batch; a rule on the clock stands before it. The authors let the learning rate decay less in
    turn, which is a schedule.

    >>> rule, proposed = Milestones(at=(0.5,)), Decision(next_batch_size=64, base_steps=1)
    >>> seen = Measurement(step=7, samples=448, base_steps=7.0, batch_size=64, base_batch_size=64,
    ...     budget=Budget(samples=1024))
    >>> rule.update(rule.init(), seen, proposed)[1].reason
    'milestone 0.5; batch 128'

    Args:
        at: fractions of the budget in (0, 1), rising.
        factor: what each multiplies the batch by, above 0.
        over: its own horizon, which names its unit: with `at=(0.25,)` and
            `over=lb.Budget(samples=400_000)` the batch grows at 100,000 samples. None for the run's
            budget.

    Raises:
        ValueError: fractions outside (0, 1) or not rising, or a factor that is not positive; at the
            first step, when neither the run nor the rule has a length.

    Reference: arXiv 1712.02029.
    """

    at: tuple[float, ...] = (0.25, 0.5, 0.75)
    factor: float = 2.0
    over: Budget | None = None

    changes = frozenset({"batch"})

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.at, self.at[1:], strict=False))
        within = all(0.0 < a < 1.0 for a in self.at)
        if not rising or not within or not 0.0 < self.factor < math.inf:
            raise ValueError(
                "Milestones are rising fractions of the budget in (0, 1), with a factor above 0, "
                f"as in Milestones(at=(0.25, 0.5), factor=2.0); got {self}."
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.over is not None else frozenset({"budget"})

    def init(self) -> PassedMilestones:
        return PassedMilestones()

    def update(
        self, state: PassedMilestones, seen: Measurement, proposed: Decision
    ) -> tuple[PassedMilestones, Decision]:
        x = seen.progress_after(self.over, base_steps=proposed.base_steps)
        count = sum([x >= at for at in self.at])
        if count <= state.count:
            return state, proposed
        size = proposed.next_batch_size
        for _ in range(state.count, count):
            size = whole_batch(self.factor * size, ranks=seen.ranks)
        because = f"milestone {self.at[count - 1]:.4g}; batch {size}"
        return PassedMilestones(count=count), proposed.resized(size, because=because)
