"""A rule over a recorded run: what it would have said, not what it would have done.

The rule decides about the measurements of the record, clocks included. Had it steered the run,
the weights, the batch sizes and so the later measurements would have been others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import STATISTICS, Measurement
from largebatch.core.rule import Rule, chain


class Recorded(Protocol):
    """Any record, from a file or from memory."""

    @property
    def steps(self) -> Sequence[tuple[Measurement, Decision]]:
        """What was seen and decided, in order of time."""
        ...


def replay(rule: Rule, record: Recorded) -> list[Decision]:
    """The decisions of a fresh `rule` about each step of a record.

    The rule that made the record gives the recorded decisions again, bit by bit. Records of version
    0.1 are an exception if the rule has running averages, which count base batches since then.

    >>> from largebatch.core.measurement import Measurement
    >>> from largebatch.record import MemoryRecord
    >>> from largebatch.rules.scaling import SqrtScaling
    >>> record = MemoryRecord()
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64)
    >>> record.write(seen, Decision(next_batch_size=256, base_steps=4.0))
    >>> [decision.lr_multiplier for decision in replay(SqrtScaling(), record)]
    [2.0]

    Args:
        rule: a rule or a chain, as for training.
        record: the whole run, from its first step.

    Raises:
        ValueError: the record starts amid a run, or never holds a statistic that the rule needs.
    """
    if not record.steps:
        return []
    _check(rule, record)
    first = record.steps[0][0]
    decider = Decider.start(
        rule,
        base_batch_size=first.base_batch_size,
        batch_size=first.batch_size,
        ranks=first.ranks,
        dataset_size=first.dataset_size,
        budget=first.budget,
    )
    decisions = []
    for seen, _ in record.steps:
        decider, decision = decider.decide(seen)
        decisions.append(decision)
    return decisions


def _check(rule: Rule, record: Recorded) -> None:
    first = record.steps[0][0]
    if first.samples:
        raise ValueError(
            f"The record starts at sample {first.samples}, and the rule's state at that point is "
            f"not known. Replay a record of the whole run: lb.JsonlRecord(path), or "
            f"lb.MemoryRecord() without maxlen."
        )
    for name in sorted(chain(rule).needs & STATISTICS):
        if all(getattr(seen, name) is None for seen, _ in record.steps):
            raise ValueError(
                f"The rule needs {name!r}, which no step of the record holds: the recorded run "
                f"did not measure it. Record a run under a rule that needs it."
            )
