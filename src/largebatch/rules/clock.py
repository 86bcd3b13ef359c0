"""Which clock a run is counted on.

By default a step of S base batches is worth S base steps: runs are compared at equal samples. With
`StepClock` each optimizer step is worth one: runs are compared at equal steps, and a larger batch
sees more samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class StepClock:
    """Counts every optimizer step as one step of the base batch, whatever its size.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64)
    >>> StepClock().update(None, seen, Decision(next_batch_size=256, base_steps=4))[1].base_steps
    1.0

    Reference: none.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[frozenset[str]] = frozenset({"clock"})
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset({"AdaScale", "StepClock"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, replace(proposed, base_steps=1.0)
