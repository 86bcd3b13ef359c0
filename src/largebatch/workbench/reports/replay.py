"""Replay a method on a recorded run: compute its decisions from the recorded measurements."""

from __future__ import annotations

import os
from dataclasses import dataclass

from largebatch.core.rule import Rule
from largebatch.record import read_record
from largebatch.record.replay_rule import replay
from largebatch.workbench.reports.facts import TRUNCATED
from largebatch.workbench.reports.old_records import replayed_note
from largebatch.workbench.runs.method_names import rule_of

WOULD = (
    "These are the decisions of {method} about the recorded measurements. A run with {method} "
    "would be different: its decisions would change the weights and therefore all later "
    "measurements."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedStep:
    """Hold one step of the record and the decision of the replayed method about it.

    Args:
        step: Number of the step, counted from 1.
        samples: Number of samples used up to and including the step.
        batch_size: Batch size of the step, in samples.
        recorded_multiplier: Factor on the base learning rate in the record.
        multiplier: Factor on the base learning rate that the replayed method decides.
        recorded_next: Next batch size in the record, in samples.
        next_batch_size: Next batch size that the replayed method decides, in samples.
        base_steps: Number of base steps that the replayed method counts for the step.
        reason: Reason of the replayed decision.
    """

    step: int
    samples: int
    batch_size: int
    recorded_multiplier: float
    multiplier: float
    recorded_next: int
    next_batch_size: int
    base_steps: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Hold the decisions of a method about a recorded run.

    Args:
        record: Path of the record.
        method: Name of the replayed method.
        label: Sentence that explains what the replayed decisions mean.
        same: Number of steps whose replayed learning-rate factor and next batch size exactly equal
            the recorded values.
        notes: Remarks about the record file, as sentences.
        steps: All steps of the record.
    """

    record: str
    method: str
    label: str
    same: int
    notes: tuple[str, ...]
    steps: tuple[ReplayedStep, ...]


def replay_file(record: str | os.PathLike[str], *, method: str | Rule) -> Replayed:
    """Return the decisions of a method about each step of a recorded run.

    >>> import tempfile
    >>> from largebatch import workbench
    >>> path = f"{tempfile.mkdtemp()}/run.jsonl"
    >>> run = workbench.train("digits", scale=4, budget="8steps", record=path, evaluations=0)
    >>> {step.multiplier for step in workbench.replay_file(path, method="sqrt").steps}
    {2.0}

    Args:
        record: Path of a file that `JsonlRecord` wrote. A corrupted file is read up to the first
            corrupted line.
        method: Name in `METHODS`, or a rule.

    Raises:
        ValueError: The method is unknown, or it needs a statistic that the run did not measure.
        RecordError: The file is not a record.
    """
    rule, name = rule_of(method)
    read = read_record(record, up_to_damage=True)
    said = []
    same = 0
    for (seen, then), now in zip(read.steps, replay(rule, read), strict=True):
        same += (then.lr_multiplier, then.next_batch_size) == (
            now.lr_multiplier,
            now.next_batch_size,
        )
        said.append(
            ReplayedStep(
                step=seen.step + 1,
                samples=seen.samples + seen.batch_size,
                batch_size=seen.batch_size,
                recorded_multiplier=then.lr_multiplier,
                multiplier=now.lr_multiplier,
                recorded_next=then.next_batch_size,
                next_batch_size=now.next_batch_size,
                base_steps=now.base_steps,
                reason=now.reason,
            )
        )
    notes = [read.damage] if read.damage else []
    if read.truncated:
        notes.append(TRUNCATED)
    why = replayed_note(read, rule)
    if why:
        notes.append(why)
    return Replayed(
        record=str(record),
        method=name,
        label=WOULD.format(method=name),
        same=same,
        notes=tuple(notes),
        steps=tuple(said),
    )
