"""Small rules that several test files put into a run, each of which does one thing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement


class Facts:
    """A rule of a test needs nothing and forbids nothing."""

    needs: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[frozenset[str]] = frozenset({"lr"})
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()

    def init(self) -> Any:
        return None


@dataclass(frozen=True, kw_only=True)
class Growing(Facts):
    """Doubles the batch once so many samples are used; the rate follows the batch in hand."""

    changes: ClassVar[frozenset[str]] = frozenset({"lr", "batch"})
    first: int
    after_samples: int

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        late = seen.samples + seen.batch_size >= self.after_samples
        proposed = proposed.resized(self.first * 2 if late else self.first)
        return state, proposed.scaled(seen.batch_size / self.first)


@dataclass(frozen=True, kw_only=True)
class Falling(Facts):
    """A rate that falls linearly over the run's budget."""

    needs: ClassVar[frozenset[str]] = frozenset({"budget"})

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, proposed.scaled(1.0 - seen.progress)


@dataclass(frozen=True, kw_only=True)
class Factor(Facts):
    """A constant factor on the rate."""

    factor: float = 3.0

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, proposed.scaled(self.factor)


@dataclass(frozen=True, kw_only=True)
class Shrinking(Facts):
    """Bounds the batch."""

    changes: ClassVar[frozenset[str]] = frozenset()
    bounds: ClassVar[frozenset[str]] = frozenset({"batch"})

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, replace(proposed, next_batch_size=min(proposed.next_batch_size, 8))
