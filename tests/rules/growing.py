"""What the tests of growing batches share: the cases, and runs that only count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Measurement, Reading
from largebatch.core.rule import Rule

FILE = Path(__file__).parents[1] / "cases" / "schedules.json"
CASES: dict[str, Any] = {case["name"]: case for case in json.loads(FILE.read_text())["cases"]}


def run(
    rule: Rule, *, budget: Budget, batch_size: int = 8, lost: tuple[int, ...] = (), **facts: Any
) -> list[tuple[Measurement, Decision]]:
    """Each step's measurement and decision until the budget is used up; the last step is cut."""
    base = {"base_batch_size": batch_size, **facts}
    decider = Decider.start(rule, batch_size=batch_size, budget=budget, **base)
    record: list[Any] = []
    while not decider.finished:
        left = budget.samples - decider.samples if budget.samples else decider.batch_size
        reading = Reading(samples=min(decider.batch_size, left), finite=len(record) not in lost)
        seen = decider.see(reading, base_lr=0.1)
        decider, decision = decider.decide(seen)
        record.append((seen, decision))
    return record


def changes(record: Sequence[tuple[Measurement, Decision]]) -> list[tuple[int, int, float]]:
    """(samples before it, batch, factor on the rate) of each step with another batch or rate than
    the one before, without the last step, which may be cut."""
    found: list[tuple[int, int, float]] = []
    for seen, decision in record[:-1]:
        if not found or found[-1][1:] != (seen.batch_size, decision.lr_multiplier):
            found.append((seen.samples, seen.batch_size, decision.lr_multiplier))
    return found


def walk(
    rule: Rule, points: Sequence[int], *, first: int, budget: Budget, base: int | None = None
) -> list[tuple[int, int, float]]:
    """For each point in samples: the batch of a step that begins one sample earlier, and batch and
    rate of the one that begins there. Long runs are asked in a few steps."""
    state, found, size = rule.init(), [], first
    facts: Any = {"base": base or first, "budget": budget}
    for point in points:
        early = size
        for begins in (point - 2, point - 1):
            if begins < 0:
                continue
            early = size
            state, decision = _ask(
                rule, state, begins, 1, wish=size, base=base or first, budget=budget
            )
            size = decision.next_batch_size
        _, decision = _ask(rule, state, point, size, wish=size, **facts)
        found.append((early, size, decision.lr_multiplier))
    return found


def _ask(
    rule: Rule, state: Any, samples: int, size: int, *, wish: int, base: int, budget: Budget
) -> tuple[Any, Decision]:
    seen = Measurement(
        step=0,
        samples=samples,
        base_steps=samples / base,
        batch_size=size,
        base_batch_size=base,
        budget=budget,
    )
    return rule.update(state, seen, Decision(next_batch_size=wish, base_steps=seen.scale))
