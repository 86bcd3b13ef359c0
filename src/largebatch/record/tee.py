"""Several sinks as one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.protocols import Sink


class Tee:
    """Passes each step on to several sinks, in their order:
    `record=lb.Tee(lb.JsonlRecord("run.jsonl"), lb.Logged(lb.CsvLogger("run.csv")))`.

    A sink that raises ends the run, as it does alone; the others are still closed.

    Raises:
        ValueError: no sink.
    """

    def __init__(self, *sinks: Sink) -> None:
        if not sinks:
            raise ValueError('lb.Tee takes one sink or more: lb.Tee(lb.JsonlRecord("run.jsonl")).')
        self.sinks = sinks

    def start(self, facts: Mapping[str, Any]) -> None:
        """Starts every sink; where one cannot, those before it are closed."""
        with ExitStack() as started:
            for sink in self.sinks:
                started.callback(sink.close)
                sink.start(facts)
            started.pop_all()

    def write(self, seen: Measurement, decision: Decision) -> None:
        for sink in self.sinks:
            sink.write(seen, decision)

    def close(self) -> None:
        """Closes every sink, all of them whatever one does."""
        with ExitStack() as closing:
            for sink in reversed(self.sinks):
                closing.callback(sink.close)
