"""The seams at which measuring, acting and recording meet; objects are handed over, not names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement, Reading


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


class Meter(Protocol):
    """What a controller asks of a meter. Tensors, losses and optimizers pass through untyped, since
    this layer knows no torch.

    Attributes:
        provides: names of the statistics it can measure.
        rank, rank_count: this process, and how many share the batch.
        least_parts: independent gradients that a step must give over all ranks.
        least_samples: samples that it must have for that.
        leader: whether this is the first rank.
        reduces: whether the meter itself averages the step in hand over the ranks.
        replica: the wrapper that synchronises the model over the ranks; None without one.
    """

    @property
    def provides(self) -> frozenset[str]: ...
    @property
    def least_parts(self) -> int: ...
    @property
    def least_samples(self) -> int: ...
    @property
    def leader(self) -> bool: ...
    @property
    def reduces(self) -> bool: ...
    @property
    def replica(self) -> Any: ...

    @property
    def rank(self) -> int: ...
    @property
    def rank_count(self) -> int: ...

    def bind(self, optimizer: Any) -> None:
        """Told once whose parameters to measure."""
        ...

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Checks once that all ranks were started alike."""
        ...

    def open(self, wanted: frozenset[str]) -> None:
        """A step begins in which these statistics are wanted."""
        ...

    def backward(self, loss: Any, *, share: float, weight: float, samples: int, last: bool) -> None:
        """Runs the backward of share * loss, one part of the step."""
        ...

    def close(self, *, planned_weight: float, digest: int = 0, exhausted: bool = False) -> Reading:
        """Combines the parts over the ranks."""
        ...

    def multiply_gradients(self, factor: float) -> None:
        """Multiplies every gradient in place."""
        ...

    def clear(self, optimizer: Any) -> None:
        """Clears the gradients after the optimizer's step."""
        ...
