"""Reads what version 0.1.0 wrote. Only this file names modules inside the package.

If a module moves, change the imports below and nothing else in this folder.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import largebatch as lb
from largebatch.core.codec import decode
from largebatch.core.decider import Decider
from largebatch.core.run_state import resume
from largebatch.rules.kinds import KINDS
from largebatch.workbench.runs.train import train as train_workload
from largebatch.workbench.workloads import Data, Workload

__all__ = ["Data", "Decider", "Workload", "train_workload"]

FOLDER = Path(__file__).parent / "0.1.0"

STATES: dict[str, dict[str, Any]] = {
    line["name"]: line
    for line in map(json.loads, (FOLDER / "states.jsonl").read_text().splitlines())
}
"""Name of a record -> the step `cut` at which a run was saved, and its saved `state`."""

RUNS: dict[str, Any] = json.loads((FOLDER / "runs.json").read_text())
"""Name of a real run -> what followed after its checkpoint."""

REWORDED: Mapping[str, str | None] = {"cosine": "noise", "diversity": "noise"}
"""First word of a reason of 0.1.0 -> the first word of the same reason today, or None if the
reason is no longer given. Add a line here when a reason gets another first word."""


def key_of(reason: str, *, renamed: Mapping[str, str | None] | None = None) -> tuple[str, ...]:
    """Return the key of a decision's reason: the first word of each of its parts.

    The rules of a chain join their parts by "; ". The first word of a part says which formula
    spoke ("gain", "theta", "schedule", "batch"); the rest is numbers and explanation. So the words
    after the first one may change without changing the key.

    >>> key_of("gain 3.1 of 8; schedule x0.5; batch 64 bounded to 32")
    ('gain', 'schedule', 'batch')

    Args:
        reason: of a decision.
        renamed: first words to replace, as in `REWORDED`.
    """
    words = [match.group() for part in reason.split("; ") if (match := re.match(r"[\w-]+", part))]
    keys = [(renamed or {}).get(word, word) for word in words]
    return tuple(key for key in keys if key is not None)


def facts_of(decision: lb.Decision, *, old: bool = False) -> dict[str, Any]:
    """Return what is compared of a decision: its numbers, statistics and the key of its reason.

    Args:
        decision: to compare.
        old: whether 0.1.0 took it, so that its reason's words are those of 0.1.0.
    """
    return {
        "next_batch_size": decision.next_batch_size,
        "lr_multiplier": decision.lr_multiplier,
        "base_steps": decision.base_steps,
        "measure_next": sorted(decision.measure_next),
        "reason": key_of(decision.reason, renamed=REWORDED if old else None),
    }


def record_named(name: str, folder: Path) -> Any:
    """Return the record of this name, unpacked into `folder` and read."""
    path = folder / "record.jsonl"
    path.write_bytes(gzip.decompress((FOLDER / "records" / f"{name}.jsonl.gz").read_bytes()))
    return lb.read_record(path)


def rule_of(header: Mapping[str, Any]) -> lb.Rule:
    """Return the rule that a record's header names."""
    rule: lb.Rule = decode(lb.Rule, header["rule"], kinds=KINDS, where="the header's rule")
    return rule


def kinds_in(plain: Any) -> Iterator[str]:
    """Yield each kind that is named anywhere in plain values."""
    if isinstance(plain, Mapping):
        yield from ([plain["kind"]] if "kind" in plain else [])
        for value in plain.values():
            yield from kinds_in(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from kinds_in(value)


def started(rule: lb.Rule, first: lb.Measurement) -> Decider:
    """Return a run built anew, as it was before the first step of a record."""
    return Decider.start(
        rule,
        base_batch_size=first.base_batch_size,
        batch_size=first.batch_size,
        ranks=first.ranks,
        dataset_size=first.dataset_size,
        budget=first.budget,
    )


def resumed(decider: Decider, state: Mapping[str, Any]) -> Decider:
    """Return the run at the step at which `state` was saved."""
    return resume(decider, state, kinds=KINDS).decider


def decisions(decider: Decider, steps: Iterable[Any]) -> Iterator[tuple[Decider, lb.Decision]]:
    """Yield the run before each step, and what it decides there."""
    for seen, _ in steps:
        after, decision = decider.decide(seen)
        yield decider, decision
        decider = after


def samples_of(loader: lb.BatchLoader, *, steps: int) -> list[list[list[int]]]:
    """Return the samples of each micro-batch of the coming steps, and take these steps."""
    taken = []
    for _ in range(steps):
        step = loader.next_step()
        assert step is not None
        micro_batches = list(step)
        loader.commit(sum(size for _, size in micro_batches))
        taken.append([[int(i) for i in samples.flatten()] for samples, _ in micro_batches])
    return taken


def bound(loader: lb.BatchLoader) -> lb.BatchLoader:
    """Return the loader, ready to give steps to one process."""
    loader.bind(rank=0, ranks=1, least_parts=1)
    return loader
