"""The seams at which measuring, acting and recording meet; objects are handed over, not names."""

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
