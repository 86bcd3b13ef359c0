"""Combine several sinks into one sink."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.protocols import Sink


class Tee:
    """Pass each training step to several sinks, in the order in which the sinks were given.

    If a sink raises an exception, the exception ends the run, and the other sinks are still closed.

    >>> import largebatch as lb
    >>> first, second = lb.MemoryRecord(), lb.MemoryRecord()
    >>> record = lb.Tee(first, second)
    >>> record.start({"base_batch_size": 64})
    >>> second.header["base_batch_size"]
    64

    Args:
        *sinks: Sinks that receive the training steps, such as `lb.JsonlRecord` and `lb.Logged`.

    Raises:
        ValueError: There is no sink.
    """

    def __init__(self, *sinks: Sink) -> None:
        if not sinks:
            raise ValueError(
                "lb.Tee was called without a sink. Pass at least one sink: "
                'lb.Tee(lb.JsonlRecord("run.jsonl")).'
            )
        self.sinks = sinks

    def start(self, facts: Mapping[str, Any]) -> None:
        """Start every sink. If a sink raises an exception, the sinks that had started are closed.

        Args:
            facts: Settings of the run by name, as JSON values.
        """
        with ExitStack() as started:
            for sink in self.sinks:
                started.callback(sink.close)
                sink.start(facts)
            started.pop_all()

    def write(self, seen: Measurement, decision: Decision) -> None:
        """Pass one training step to every sink.

        Args:
            seen: Measurement of the training step.
            decision: Decision that the rule made from the measurement.
        """
        for sink in self.sinks:
            sink.write(seen, decision)

    def close(self) -> None:
        """Close all sinks, even if one of the sinks raises an exception."""
        with ExitStack() as closing:
            for sink in reversed(self.sinks):
                closing.callback(sink.close)
