"""Define what a record (`Sink`) and a logger (`Logger`) must implement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement


class Sink(Protocol):
    """Store the measurement and the decision of every training step, as `lb.JsonlRecord` does."""

    def start(self, facts: Mapping[str, Any]) -> None:
        """Receive a description of the run once, before the first training step.

        Args:
            facts: Settings of the run by name, as JSON values.
        """
        ...

    def write(self, seen: Measurement, decision: Decision) -> None:
        """Store one training step: its measurement and its decision.

        Args:
            seen: Measurement of the training step.
            decision: Decision that the rule made from the measurement.
        """
        ...

    def close(self) -> None:
        """Finish writing. The run calls `close` once, at its end."""
        ...


class Logger(Protocol):
    """Show the numbers of a run during training. `lb.Logged` calls the logger on rank 0.

    A resumed run may call `start` again, in another process or on the same object. If `start` is
    called again, the logger must append to the existing log and must not overwrite the log.

    >>> class Printer:
    ...     def start(self, facts): print("start")
    ...     def log(self, values, *, step, samples): print(step, values)
    ...     def close(self): print("end")
    >>> Printer().log({"loss": 0.5}, step=1, samples=64)
    1 {'loss': 0.5}
    """

    def start(self, facts: Mapping[str, Any]) -> None:
        """Receive a description of the run before the first values.

        An exception from this method ends the run before its first training step.

        Args:
            facts: Settings of the run by name, as JSON values.
        """
        ...

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        """Show the numbers of one training step.

        Args:
            values: Finite numbers by name.
            step: Number of optimizer steps taken, this training step included. A skipped training
                step has the same number as the training step before it.
            samples: Number of samples used over all ranks, this training step included.
        """
        ...

    def close(self) -> None:
        """Finish logging. The run calls `close` at its end, and a second call must do nothing."""
        ...
