"""Replay a rule over a recorded run, to see which decisions the rule makes for its measurements.

In a replay, the rule decides from the recorded measurements and the recorded counters of the run.
If the rule had controlled the run, then the weights, the batch sizes and the later measurements
would have been different.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import STATISTICS, Measurement
from largebatch.core.rule import Rule, chain


class Recorded(Protocol):
    """Define a record that can be replayed, from a file or from memory."""

    @property
    def steps(self) -> Sequence[tuple[Measurement, Decision]]:
        """Return the measurement and the decision of each training step, oldest first."""
        ...


def replay(rule: Rule, record: Recorded) -> list[Decision]:
    """Return the decisions that a fresh `rule` makes about each training step of a record.

    The rule that made the record returns the recorded decisions again, bit by bit. Records of
    version 0.1 are an exception if the rule has running averages, because averages count base
    batches since version 0.2.

    >>> from largebatch.core.measurement import Measurement
    >>> from largebatch.record import MemoryRecord
    >>> from largebatch.rules.scaling import SqrtScaling
    >>> record = MemoryRecord()
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64)
    >>> record.write(seen, Decision(next_batch_size=256, base_steps=4.0))
    >>> [decision.lr_multiplier for decision in replay(SqrtScaling(), record)]
    [2.0]

    Args:
        rule: Rule or chain of rules, as for training.
        record: Record of the whole run, from its first training step.

    Raises:
        ValueError: The record starts in the middle of a run, or no training step of the record has
            a statistic that the rule needs.
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
            f"The record starts at sample {first.samples}, where the state of the rule is unknown. "
            "Replay a record of the whole run: pass record=lb.JsonlRecord('run.jsonl'), or "
            "record=lb.MemoryRecord() without maxlen."
        )
    for name in sorted(chain(rule).needs & STATISTICS):
        if all(getattr(seen, name) is None for seen, _ in record.steps):
            raise ValueError(
                f"The rule needs {name!r}, but no training step of the record has it, because the "
                f"recorded run did not measure {name!r}. Record a run with a rule that needs "
                f"{name!r}."
            )
