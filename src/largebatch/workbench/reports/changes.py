"""What changed in a run, and the reasons that its rule gave."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.record import Record, Step
from largebatch.workbench.reports.curves import lr_of, short


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A step after which the batch was another, that was skipped, or whose reason was given in no
    other step, as where a warm-up ends."""

    step: int
    samples: int
    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonGroup:
    """Reasons that differ in their numbers alone."""

    example: str
    count: int
    first: int
    last: int


def changes_of(record: Record) -> list[Change]:
    """Return the steps of a record after which something was another, in order of time."""
    if not record.steps:
        return []
    found, before = [], record.header.get("batch_size", record.steps[0].seen.batch_size)
    words = Counter(_wording(step.decision.reason) for step in record.steps)
    last = len(record.steps) - 1
    for at, step in enumerate(record.steps):
        seen, decision = step
        after = seen.samples + seen.batch_size
        if not seen.finite:
            what = f"skipped, loss {seen.loss}"
        elif decision.next_batch_size != before:
            what = f"batch {before} to {decision.next_batch_size}"
        elif 0 < at < last and words[_wording(decision.reason)] == 1:
            what = f"rate {short(lr_of(step) or 0.0):.4g}"
        else:
            before = decision.next_batch_size
            continue
        before = decision.next_batch_size
        found.append(Change(step=seen.step + 1, samples=after, what=what, reason=decision.reason))
    return found


def reasons_of(steps: Sequence[Step]) -> tuple[ReasonGroup, ...]:
    """Return the reasons of all steps, grouped; the most frequent first, and 50 at most."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for seen, decision in steps:
        groups.setdefault(_wording(decision.reason), []).append((seen.step + 1, decision.reason))
    kinds = [
        ReasonGroup(
            example=group[-1][1] or "(none)", count=len(group), first=group[0][0], last=group[-1][0]
        )
        for group in groups.values()
    ]
    return tuple(sorted(kinds, key=lambda kind: -kind.count)[:50])


def _wording(reason: str) -> str:
    """A reason without its numbers."""
    return re.sub(r"[0-9.]+(e[-+]?[0-9]+)?", "#", reason)
