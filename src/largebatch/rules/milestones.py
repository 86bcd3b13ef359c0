"""Grow the batch by a factor at given points of the run, without a measurement (AdaBatch).

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
    """Hold the number of milestones that the run has passed."""

    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestones(DefaultFacts):
    """Multiply the batch size by `factor` at each of the points `at`.

    The step after the run has reached a point is the first step with the larger batch. Put a rule
    that changes the counter of base steps before `Milestones`. The authors also let the learning
    rate decay by a smaller ratio than with a constant batch; add a `Schedule` for the decay.

    >>> rule, proposed = Milestones(at=(0.5,)), Decision(next_batch_size=64, base_steps=1)
    >>> seen = Measurement(step=7, samples=448, base_steps=7.0, batch_size=64, base_batch_size=64,
    ...     budget=Budget(samples=1024))
    >>> rule.update(rule.init(), seen, proposed)[1].reason
    'milestone 0.5 passed; batch size 128'

    Args:
        at: Fractions of the budget in (0, 1), in rising order.
        factor: Factor that each point applies to the batch size, above 0.
        over: Length that the fractions refer to: with `at=(0.25,)` and
            `over=lb.Budget(samples=400_000)` the batch grows at 100,000 samples. If `over` is None,
            the fractions refer to the run's budget.

    Raises:
        ValueError: If the fractions are outside (0, 1) or do not rise, or if the factor is not
            above 0. If neither the run nor the rule has a length, the first step raises ValueError.

    Reference: Devarakonda, Naumov, Garland, 2017, arXiv 1712.02029.
    """

    at: tuple[float, ...] = (0.25, 0.5, 0.75)
    factor: float = 2.0
    over: Budget | None = None

    changes = frozenset({"batch"})
    references = ("devarakonda2017adabatch",)

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.at, self.at[1:], strict=False))
        within = all(0.0 < a < 1.0 for a in self.at)
        if not rising or not within or not 0.0 < self.factor < math.inf:
            raise ValueError(
                f"{self} was given, but `at` must contain rising fractions in (0, 1), "
                "and factor must be above 0. Example: Milestones(at=(0.25, 0.5), factor=2.0)"
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
        because = f"milestone {self.at[count - 1]:.4g} passed; batch size {size}"
        return PassedMilestones(count=count), proposed.resized(size, because=because)
