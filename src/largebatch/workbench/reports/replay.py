"""`largebatch replay`: what a method would have said about a recorded run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from largebatch.core.rule import Rule
from largebatch.record import read_record
from largebatch.record.replay_rule import replay
from largebatch.workbench.reports.old_records import replayed_note
from largebatch.workbench.runs.method_names import rule_of

WOULD = (
    "What {method} WOULD HAVE SAID about the recorded gradients, not what it would have done: had "
    "it steered, the weights, the batches and so the later measurements would have been others."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedStep:
    """One step of the record, and what the method decides about it."""

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
    """A method over a record.

    Args:
        record: the file.
        method: what was replayed.
        label: what the numbers are, and are not.
        same: steps in which batch and multiplier are those of the record, bit for bit.
        notes: what to know about the file.
        steps: all of them.
    """

    record: str
    method: str
    label: str
    same: int
    notes: tuple[str, ...]
    steps: tuple[ReplayedStep, ...]


def replay_file(record: str | os.PathLike[str], *, method: str | Rule) -> Replayed:
    """Return the decisions of a method, from its first step, about each step of a recorded run.

    Args:
        record: a file that `JsonlRecord` wrote; a damaged one is read up to the damage.
        method: a name of `METHODS`, or a rule.

    Raises:
        ValueError: an unknown method, or one that needs a statistic which the run did not measure.
        RecordError: a file that is no record.
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
        notes.append("The last line was cut by a crash and is left out.")
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
