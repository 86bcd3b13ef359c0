"""List the changes in a recorded run and the reasons that its rule gave."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.record import Record, Step
from largebatch.rules.sizes import LARGEST
from largebatch.workbench.reports.curves import lr_of, short


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Describe a step that changed the batch size, was skipped, or has a unique reason.

    A reason is unique if no other step has a reason with the same words, such as the end of a
    warm-up.

    Args:
        step: Number of the step, counted from 1.
        samples: Number of samples used up to and including the step.
        what: Description of the change.
        reason: Reason that the rule gave for its decision in the step.
    """

    step: int
    samples: int
    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonGroup:
    """Hold a group of reasons that differ only in their numbers.

    Args:
        example: Reason of the last step of the group.
        count: Number of steps with a reason of the group.
        first, last: Numbers of the first and the last step of the group, counted from 1.
    """

    example: str
    count: int
    first: int
    last: int


def changes_of(record: Record) -> list[Change]:
    """Return the changes in a record, in order of time."""
    if not record.steps:
        return []
    found, before = [], record.header.get("batch_size", record.steps[0].seen.batch_size)
    words = Counter(_wording(step.decision.reason) for step in record.steps)
    last = len(record.steps) - 1
    for at, step in enumerate(record.steps):
        seen, decision = step
        after = seen.samples + seen.batch_size
        if not seen.finite:
            what = f"step skipped, loss {seen.loss}"
        elif decision.next_batch_size != before:
            what = f"batch size {before:,} to {decision.next_batch_size:,}"
        elif 0 < at < last and words[_wording(decision.reason)] == 1:
            what = f"learning rate {short(lr_of(step) or 0.0):.4g}"
        else:
            before = decision.next_batch_size
            continue
        before = decision.next_batch_size
        reason = readable(decision.reason)
        found.append(Change(step=seen.step + 1, samples=after, what=what, reason=reason))
    return found


def reasons_of(steps: Sequence[Step]) -> tuple[ReasonGroup, ...]:
    """Return at most 50 groups of the reasons of all steps, the most frequent group first."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for seen, decision in steps:
        groups.setdefault(_wording(decision.reason), []).append((seen.step + 1, decision.reason))
    kinds = [
        ReasonGroup(
            example=readable(group[-1][1]) or "(no reason given)",
            count=len(group),
            first=group[0][0],
            last=group[-1][0],
        )
        for group in groups.values()
    ]
    return tuple(sorted(kinds, key=lambda kind: -kind.count)[:50])


def readable(reason: str) -> str:
    """Return a reason with commas in large whole numbers and a mark at a batch size without limit.

    >>> readable("batch 33554432 bounded to 1024; batch 1099511627776")
    'batch 33,554,432 bounded to 1024; batch 1,099,511,627,776 (no limit)'

    Args:
        reason: Reason of a decision, as the record contains it.
    """

    def shown(found: re.Match[str]) -> str:
        number = int(found[0])
        return f"{number:,}" + " (no limit)" * (number == LARGEST)

    return re.sub(r"(?<![\w.,])\d{5,}(?![\w.,]\d|\w)", shown, reason)


def _wording(reason: str) -> str:
    """Return a reason with each number replaced by #."""
    return re.sub(r"[0-9.]+(e[-+]?[0-9]+)?", "#", reason)
