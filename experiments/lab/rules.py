"""Define rules that serve as controls of experiments and that no user would train with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import largebatch as lb

NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiplied:
    """Multiply the base learning rate by a constant, such as the mean gain of another run.

    Args:
        factor: The constant, above 0.
    """

    factor: float

    needs: ClassVar[frozenset[str]] = NONE
    changes: ClassVar[frozenset[str]] = frozenset({"lr"})
    bounds: ClassVar[frozenset[str]] = NONE
    forbids: ClassVar[frozenset[str]] = NONE

    def init(self) -> None:
        return None

    def update(
        self, state: None, seen: lb.Measurement, proposed: lb.Decision
    ) -> tuple[None, lb.Decision]:
        return state, proposed.scaled(self.factor, because=f"constant x{self.factor:.4g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Yoked:
    """Multiply the base learning rate by the multipliers that another run recorded.

    Step i uses multiplier i, and all steps after the last multiplier use the last one. The gradient
    noise of this run is ignored.

    Args:
        multipliers: Multipliers of the replayed run, one per step.
    """

    multipliers: tuple[float, ...]

    needs: ClassVar[frozenset[str]] = NONE
    changes: ClassVar[frozenset[str]] = frozenset({"lr"})
    bounds: ClassVar[frozenset[str]] = NONE
    forbids: ClassVar[frozenset[str]] = NONE

    def init(self) -> None:
        return None

    def update(
        self, state: None, seen: lb.Measurement, proposed: lb.Decision
    ) -> tuple[None, lb.Decision]:
        factor = self.multipliers[min(seen.step, len(self.multipliers) - 1)]
        return state, proposed.scaled(factor, because=f"yoked x{factor:.4g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Change the batch size at fixed fractions of the budget, as when workers join and leave.

    The budget is divided into `len(scales)` equal stages. The batch size of stage i is
    `scales[i]` times the base batch size.

    Args:
        scales: Scale S of each stage.
    """

    scales: tuple[int, ...]

    needs: ClassVar[frozenset[str]] = frozenset({"budget"})
    changes: ClassVar[frozenset[str]] = frozenset({"batch"})
    bounds: ClassVar[frozenset[str]] = NONE
    forbids: ClassVar[frozenset[str]] = NONE

    def init(self) -> None:
        return None

    def update(
        self, state: None, seen: lb.Measurement, proposed: lb.Decision
    ) -> tuple[None, lb.Decision]:
        part = min(int(seen.progress_of(None) * len(self.scales)), len(self.scales) - 1)
        size = self.scales[part] * seen.base_batch_size
        if size == proposed.next_batch_size:
            return state, proposed
        return state, proposed.resized(size, because=f"{self.scales[part]} workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lagged:
    """Give a rule the moments of the previous step in place of those of the current step.

    A controller that never waits for the device would have to decide this way.

    Args:
        rule: The rule that decides.
    """

    rule: lb.Rule

    @property
    def needs(self) -> frozenset[str]:
        return self.rule.needs

    @property
    def changes(self) -> frozenset[str]:
        return self.rule.changes

    @property
    def bounds(self) -> frozenset[str]:
        return self.rule.bounds

    @property
    def forbids(self) -> frozenset[str]:
        return self.rule.forbids

    def init(self) -> tuple[Any, Any]:
        return (self.rule.init(), (None, None))

    def update(
        self, state: tuple[Any, Any], seen: lb.Measurement, proposed: lb.Decision
    ) -> tuple[tuple[Any, Any], lb.Decision]:
        inner, (moments, preconditioned) = state
        late = replace(seen, moments=moments, preconditioned_moments=preconditioned)
        inner, decision = self.rule.update(inner, late, proposed)
        return (inner, (seen.moments, seen.preconditioned_moments)), decision
