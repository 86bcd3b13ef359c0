"""Where a run writes its steps (`Sink`) and shows its numbers (`Logger`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement


class Sink(Protocol):
    """Where a run's steps are written, one call a step."""

    def start(self, facts: Mapping[str, Any]) -> None:
        """Called once before the first step with what describes the run (plain values)."""
        ...

    def write(self, seen: Measurement, decision: Decision) -> None:
        """Called after each decision."""
        ...

    def close(self) -> None:
        """Called once at the end."""
        ...


class Logger(Protocol):
    """Where a run's numbers are shown while it lasts; `Logged` feeds it, on the first rank.

    A run that goes on may call `start` again, in another process or with the same object: the
    logger then goes on with what it has, and never overwrites it.
    """

    def start(self, facts: Mapping[str, Any]) -> None:
        """Called before the first values with what describes the run (plain values); what fails
        here ends the run before its first step."""
        ...

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        """Called with finite numbers by name, and the clocks after their step: optimizer steps
        taken and samples used. A step that was lost has the number of the step before it."""
        ...

    def close(self) -> None:
        """Called at the end; a second call does nothing."""
        ...
