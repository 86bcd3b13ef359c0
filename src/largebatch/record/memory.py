"""Keep a run's record in memory, for tests and plots."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.record.read import Step


class MemoryRecord:
    """Keep all training steps of a run, or only the last `maxlen` training steps, in memory.

    >>> record = MemoryRecord(maxlen=1)
    >>> for step in range(3):
    ...     seen = Measurement(
    ...         step=step, samples=8 * step, base_steps=step, batch_size=8, base_batch_size=8)
    ...     record.write(seen, Decision(next_batch_size=8, base_steps=1.0))
    >>> [step.seen.samples for step in record.steps]
    [16]

    Args:
        maxlen: Number of last training steps to keep, or None to keep all.

    Raises:
        ValueError: `maxlen` is below 1.
    """

    def __init__(self, *, maxlen: int | None = None) -> None:
        if maxlen is not None and maxlen < 1:
            raise ValueError(
                f"maxlen={maxlen!r} was given, but it must be a number of training steps, at least "
                "1, or None. Pass maxlen=1000."
            )
        self.header: Mapping[str, Any] = {}
        self._steps: deque[Step] = deque(maxlen=maxlen)

    @property
    def steps(self) -> list[Step]:
        """Return the training steps that are kept, oldest first."""
        return list(self._steps)

    def start(self, facts: Mapping[str, Any]) -> None:
        """Keep the description of the run as `header`.

        Args:
            facts: Settings of the run by name, as JSON values.
        """
        self.header = dict(facts)

    def write(self, seen: Measurement, decision: Decision) -> None:
        """Add one training step.

        Args:
            seen: Measurement of the training step.
            decision: Decision that the rule made from the measurement.
        """
        self._steps.append(Step(seen, decision))

    def close(self) -> None:
        """Do nothing. The training steps stay in memory."""
        return
