"""Controls that no user would train with: rules that know the answer, or forget a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import largebatch as lb

NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiplied:
    """The base rate times a constant, as a tuned constant or another run's mean gain."""

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
    """Another run's multipliers, step by step, whatever this run's own noise; the last one stays.

    Args:
        multipliers: of the run that is replayed.
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
    """Batches of scales[0], scales[1], ... base batches in equal parts of the budget, as when
    workers come and go.

    Args:
        scales: S of each part.
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
    """A rule that decides by the moments of the step before, as one that waits for no device would.

    Args:
        rule: that decides.
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
