"""A run's record in memory, for tests, plots and watching."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.record.read import Step


class MemoryRecord:
    """Keeps the steps, all or the last ones; changes state.

    >>> record = MemoryRecord(maxlen=1)
    >>> for step in range(3):
    ...     seen = Measurement(
    ...         step=step, samples=8 * step, base_steps=step, batch_size=8, base_batch_size=8)
    ...     record.write(seen, Decision(next_batch_size=8, base_steps=1.0))
    >>> [step.seen.samples for step in record.steps]
    [16]

    Args:
        maxlen: how many of the last steps to keep; None keeps all.

    Raises:
        ValueError: a `maxlen` below 1.
    """

    def __init__(self, *, maxlen: int | None = None) -> None:
        if maxlen is not None and maxlen < 1:
            raise ValueError(f"maxlen is a number of steps, at least 1, or None; got {maxlen!r}.")
        self.header: Mapping[str, Any] = {}
        self._steps: deque[Step] = deque(maxlen=maxlen)

    @property
    def steps(self) -> list[Step]:
        """The steps kept, in order of time."""
        return list(self._steps)

    def start(self, facts: Mapping[str, Any]) -> None:
        self.header = dict(facts)

    def write(self, seen: Measurement, decision: Decision) -> None:
        self._steps.append(Step(seen, decision))

    def close(self) -> None:
        return None
