"""A schedule as a table of stages, without training: what a run on the clock alone would do.

    stage = all steps of one batch size,    steps = ceil(samples of the stage / batch)

The decisions are those of the rule itself, asked at the clocks at which something may change; the
steps between are counted and not made, so a budget of 10^13 samples costs no more than one of 10^4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from largebatch.core.decider import Decider
from largebatch.core.measurement import Budget, Reading
from largebatch.core.rule import Chain, Rule, chain, label_of, within
from largebatch.rules import Growth, Milestones

ON_THE_CLOCK = frozenset(
    {
        "Chain", "ClampBatch", "ClampLr", "Growth", "Legw", "LimitGrowth", "LinearScaling",
        "Milestones", "Schedule", "SqrtScaling", "WarmUp",
    }
)  # fmt: skip
"""Rules that decide by the clock, the table and the batch in hand."""

MOST_BUDGET = 10**13
"""Samples of a schedule; beyond 2^53 a float misses whole samples, and a fraction long before."""

MOST_STAGES = 100_000
"""A table of more is no table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The steps of one batch size, in a row.

    Args:
        samples: used before the first of them.
        batch_size: in samples; the last step of the run may be shorter.
        lr: factor on the base rate in the first step.
        last_lr: in the last step.
        steps: how many.
        cumulative_steps: with those of the stages before.
    """

    samples: int
    batch_size: int
    lr: float
    last_lr: float
    steps: int
    cumulative_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a schedule does over a budget.

    Args:
        base_batch_size: B0, in samples.
        budget: in samples.
        rows: the stages, in their order.
        passed_over: stages that were too short for a step of their batch.
    """

    base_batch_size: int
    budget: int
    rows: tuple[Row, ...]
    passed_over: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.rows[-1].cumulative_steps

    @property
    def constant_steps(self) -> int:
        """Those of a run with the base batch throughout."""
        return -(-self.budget // self.base_batch_size)

    @property
    def mean_batch_size(self) -> float:
        """Samples a step."""
        return self.budget / self.steps

    @property
    def saved(self) -> float:
        """The part of the constant base batch's steps that the schedule does without; below 0
        where it takes more."""
        return 1.0 - self.steps / self.constant_steps


def table_of(
    rule: Rule,
    *,
    budget: int,
    base_batch_size: int,
    batch_size: int | None = None,
    dataset_size: int | None = None,
) -> Table:
    """The table of a rule that decides by the clock.

    >>> rule = Growth(at=(0.25, 0.5, 0.75))
    >>> [row.steps for row in table_of(rule, budget=6400, base_batch_size=16).rows]
    [100, 50, 25, 13]

    Args:
        rule: usually a chain.
        budget: of the run, in samples.
        base_batch_size: B0, in samples.
        batch_size: of the first step; None for the base batch, or the table's first where its
            batches are absolute.
        dataset_size: samples in an epoch, at which batches end; None for no such end.

    Raises:
        ValueError: a rule that looks at more than the clock, a budget smaller than the first batch
            or larger than 10^13 samples, or an absolute point that the run does not reach.
    """
    start = started(
        rule,
        budget=budget,
        base_batch_size=base_batch_size,
        batch_size=batch_size,
        dataset_size=dataset_size,
    )
    rows: list[Row] = []
    for first, last, rate, last_rate in runs(start):
        rows.append(
            Row(
                samples=first.samples,
                batch_size=first.batch_size,
                lr=rate,
                last_lr=last_rate,
                steps=last.step - first.step,
                cumulative_steps=last.step,
            )
        )
        if len(rows) > MOST_STAGES:
            raise ValueError(
                f"The batch changes more than {MOST_STAGES:,} times: {label_of(rule)} is no "
                "schedule in stages. Take fewer of them, as in lb.methods.growth(stages=5)."
            )
    return Table(
        base_batch_size=base_batch_size,
        budget=budget,
        rows=tuple(rows),
        passed_over=_passed_over(start.rule, rows),
    )


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
    whole = _on_the_clock(rule)
    first = batch_size or _first_of(whole) or base_batch_size
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
    for growth in _growths(decider.rule):
        if isinstance(growth, Growth) and growth.stages.lr:
            begins = list(_boundaries(decider, growth))
            if any(before < begin <= here for begin in begins):
                return rate_at(decider) != last_rate
    return False


def _step(decider: Decider) -> Decider:
    size = min(decider.batch_size, _budget(decider) - decider.samples)
    return decider.decide(decider.see(Reading(samples=size, loss=1.0), base_lr=1.0))[0]


def _certain(decider: Decider) -> int:
    """Steps after which the batch is still the same for certain, and some are left to be made."""
    size, here = decider.batch_size, decider.samples
    points = [b for rule in _growths(decider.rule) for b in _boundaries(decider, rule) if b > here]
    points.append(float(_budget(decider)))
    # two steps are kept for what a point is rounded by
    return max(math.floor((min(points) - here) / size) - 2, 0)


def _boundaries(decider: Decider, rule: Growth | Milestones) -> Iterator[float]:
    """Where the batch may change, in samples from the start of the run."""
    over = rule.over or decider.budget
    assert over is not None
    for at in rule.at:
        amount = at * over.amount
        if over.unit == "base_steps":
            amount *= decider.base_batch_size
        elif over.unit == "steps":
            amount = decider.samples + (amount - decider.step) * decider.batch_size
        yield amount


def _growths(rule: Rule) -> list[Growth | Milestones]:
    return [one for one in within(rule) if isinstance(one, (Growth, Milestones))]


def _budget(decider: Decider) -> int:
    assert decider.budget is not None
    assert decider.budget.samples is not None
    return decider.budget.samples


def _on_the_clock(rule: Rule) -> Chain:
    whole = chain(rule)
    other = {type(one).__name__ for one in within(whole)} - ON_THE_CLOCK
    if other:
        raise ValueError(
            f"{', '.join(sorted(other))} decides by what a run measures, so its steps are not "
            "known before: largebatch plan --dry-run takes growth, linear-growth, warmup-growth, "
            'seesaw, smith, constant, cosine, a string such as "0:768 250B:1536", or a file.'
        )
    return whole


def _first_of(rule: Chain) -> int | None:
    absolute = [g.stages for g in _growths(rule) if isinstance(g, Growth) and g.stages.of]
    return math.ceil(absolute[0].required(0, first=1) * (1.0 - 1e-12)) if absolute else None


def _passed_over(rule: Rule, rows: list[Row]) -> int:
    """Stages of the tables that were too short for a step of theirs, where nothing bounds them."""
    if {type(one).__name__ for one in within(rule)} & {"ClampBatch", "LimitGrowth"}:
        return 0
    wanted = 1
    for growth in _growths(rule):
        if isinstance(growth, Growth):
            table, count = growth.stages, len(growth.stages)
            pairs = [(table.batch[m], table.rate(m)) for m in range(count)]
            wanted += sum(a != b for a, b in pairwise(pairs))
    return max(wanted - len(rows), 0)
