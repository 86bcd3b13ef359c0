"""A run on the clock alone, its steps counted and not made.

The decisions are those of the rule itself, asked at the clocks at which something may change; the
steps between are counted, so a budget of 10^13 samples costs no more than one of 10^4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from largebatch.core.decider import Decider
from largebatch.core.measurement import Budget, Reading
from largebatch.core.rule import Rule
from largebatch.rules import Growth
from largebatch.workbench.planner.boundaries import boundaries, first_of, growths_of, on_the_clock

MOST_BUDGET = 10**13
"""Samples of a schedule; beyond 2^53 a float misses whole samples, and a fraction long before."""


def started(
    rule: Rule,
    *,
    budget: int,
    base_batch_size: int,
    batch_size: int | None = None,
    dataset_size: int | None = None,
) -> Decider:
    """The decider before the first step, of a run that is not made.

    Raises:
        ValueError: as `table_of`.
    """
    whole = on_the_clock(rule)
    first = batch_size or first_of(whole) or base_batch_size
    if not isinstance(budget, int) or not first <= budget <= MOST_BUDGET:
        raise ValueError(
            f"A schedule's budget is a whole number of samples, from its first batch, {first:,}, "
            f"to {MOST_BUDGET:,}; got {budget!r}. Example: --budget 10M"
        )
    return Decider.start(
        whole,
        base_batch_size=base_batch_size,
        batch_size=first,
        dataset_size=dataset_size,
        budget=Budget(samples=budget),
    )


def rate_at(decider: Decider) -> float:
    """The factor on the base rate in the coming step, at its whole batch."""
    whole = Reading(samples=decider.batch_size, loss=1.0)
    return decider.decide(decider.see(whole, base_lr=1.0))[1].lr_multiplier


def ahead(decider: Decider, steps: int) -> Decider:
    """The decider after so many more steps of its batch, in which its state stays as it is."""
    base_steps = steps * decider.batch_size / decider.base_batch_size
    return replace(
        decider,
        step=decider.step + steps,
        samples=decider.samples + steps * decider.batch_size,
        base_steps=decider.base_steps + base_steps,
    )


def runs(decider: Decider) -> Iterator[tuple[Decider, Decider, float, float]]:
    """(decider before the first step of a stage, after its last one, both steps' rates).

    Args:
        decider: as `started` gives it.
    """
    while not decider.finished:
        first, rate = decider, rate_at(decider)
        last_rate = rate
        while not decider.finished and decider.batch_size == first.batch_size:
            last_rate = rate_at(decider)
            decider = _step(decider)
            if not decider.finished and _rises_alone(decider, last_rate):
                break
            if decider.batch_size == first.batch_size:  # else a bound lets it move step by step
                decider = ahead(decider, _certain(decider))
        yield first, decider, rate, last_rate


def _rises_alone(decider: Decider, last_rate: float) -> bool:
    """Whether a stage of the table with the same batch and another rate begins here."""
    before, here = decider.samples - decider.batch_size, decider.samples * (1.0 + 1e-12)
    for growth in growths_of(decider.rule):
        if isinstance(growth, Growth) and growth.stages.lr:
            begins = list(boundaries(decider, growth))
            if any(before < begin <= here for begin in begins):
                return rate_at(decider) != last_rate
    return False


def _step(decider: Decider) -> Decider:
    size = min(decider.batch_size, _budget(decider) - decider.samples)
    return decider.decide(decider.see(Reading(samples=size, loss=1.0), base_lr=1.0))[0]


def _certain(decider: Decider) -> int:
    """Steps after which the batch is still the same for certain, and some are left to be made."""
    size, here = decider.batch_size, decider.samples
    points = [b for rule in growths_of(decider.rule) for b in boundaries(decider, rule) if b > here]
    points.append(float(_budget(decider)))
    # two steps are kept for what a point is rounded by
    return max(math.floor((min(points) - here) / size) - 2, 0)


def _budget(decider: Decider) -> int:
    assert decider.budget is not None
    assert decider.budget.samples is not None
    return decider.budget.samples
