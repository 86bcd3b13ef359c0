"""A run that decides by the clock alone: its steps are counted and not made.

A rule on the clock is asked at the points at which something may change, and the steps between are
counted. So a budget of 10^13 samples costs no more than one of 10^4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from largebatch.core.decider import Decider
from largebatch.core.measurement import STATISTICS, Budget, Reading
from largebatch.core.rule import Chain, Rule, chain, name_of, within
from largebatch.rules import Growth, Milestones
from largebatch.workbench.amounts import MAX_SAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStage:
    """The steps of one batch size, in a row.

    Args:
        first: before the first of the steps.
        last: after the last one.
        lr, last_lr: factors on the base rate in the first and in the last step.
    """

    first: Decider
    last: Decider
    lr: float
    last_lr: float

    @property
    def steps(self) -> int:
        """How many steps the stage has."""
        return self.last.step - self.first.step

    def lr_after(self, steps: int) -> float:
        """Return the factor on the base rate after so many steps of the stage."""
        return next_lr(skip_steps(self.first, steps))


def on_the_clock(rule: Rule) -> Chain:
    """Return the rule as a chain, if all of it decides by the clock.

    Raises:
        ValueError: a rule that looks at more.
    """
    whole = chain(rule)
    other = sorted({name_of(one) for one in within(whole) if not decides_by_the_clock(one)})
    if other:
        raise ValueError(
            f"{', '.join(other)} decides by what a run measures, so its steps are not "
            "known before the run. Schedules with known steps are growth, linear-growth, "
            'warmup-growth, seesaw, smith, constant, cosine, a string such as "0:768 250B:1536", '
            "or a schedule's file."
        )
    return whole


def decides_by_the_clock(rule: Rule) -> bool:
    """Return whether a rule's decisions follow from the clock, its table and the batch in hand.

    It then needs nothing that is measured, leaves the clock as it is and remembers nothing of past
    steps. A table's position is no memory, since it follows from the clock.

    >>> from largebatch.rules import StepClock
    >>> decides_by_the_clock(Growth()), decides_by_the_clock(StepClock())
    (True, False)
    """
    measures = rule.needs & (STATISTICS | {"loss"})
    remembers = not isinstance(rule, (Growth, Milestones, Chain)) and rule.init() is not None
    return not measures and "clock" not in rule.changes and not remembers


def growths_of(rule: Rule) -> list[Growth | Milestones]:
    """Return those of its rules that change the batch at given points."""
    return [one for one in within(rule) if isinstance(one, (Growth, Milestones))]


def boundaries(decider: Decider, rule: Growth | Milestones) -> Iterator[float]:
    """Yield where the batch may change, in samples from the start of the run."""
    over = rule.over or decider.budget
    assert over is not None
    for at in rule.at:
        amount = at * over.amount
        if over.unit == "base_steps":
            amount *= decider.base_batch_size
        elif over.unit == "steps":
            amount = decider.samples + (amount - decider.step) * decider.batch_size
        yield amount


def first_batch_of(rule: Chain) -> int | None:
    """Return the samples of the first batch if the table's batches are absolute, else None."""
    absolute = [g.stages for g in growths_of(rule) if isinstance(g, Growth) and g.stages.of]
    return math.ceil(absolute[0].required(0, first=1) * (1.0 - 1e-12)) if absolute else None


def start_decider(
    rule: Rule,
    *,
    budget: int,
    base_batch_size: int,
    batch_size: int | None = None,
    dataset_size: int | None = None,
) -> Decider:
    """Return the decider before the first step of a run that is not made.

    Raises:
        ValueError: as `clock_schedule`.
    """
    whole = on_the_clock(rule)
    first = batch_size or first_batch_of(whole) or base_batch_size
    if not isinstance(budget, int) or not first <= budget <= MAX_SAMPLES:
        raise ValueError(
            f"budget={budget!r} is not a whole number of samples from the first batch, {first:,}, "
            f"to {MAX_SAMPLES:,}. Pass budget=10_000_000"
        )
    return Decider.start(
        whole,
        base_batch_size=base_batch_size,
        batch_size=first,
        dataset_size=dataset_size,
        budget=Budget(samples=budget),
    )


def run_stages(decider: Decider) -> Iterator[ClockStage]:
    """Yield the stages of a run, from the first step to the last one.

    Args:
        decider: as `start_decider` returns it.
    """
    growths = growths_of(decider.rule)
    while not decider.finished:
        first, lr = decider, next_lr(decider)
        last_lr = lr
        while not decider.finished and decider.batch_size == first.batch_size:
            last_lr = next_lr(decider)
            decider = _step(decider)
            if not decider.finished and _only_lr_changes(decider, growths, last_lr):
                break
            if decider.batch_size == first.batch_size:  # else a bound lets it move step by step
                decider = skip_steps(decider, _certain_steps(decider, growths))
        yield ClockStage(first=first, last=decider, lr=lr, last_lr=last_lr)


def next_lr(decider: Decider) -> float:
    """Return the factor on the base rate in the coming step, at its whole batch."""
    whole = Reading(samples=decider.batch_size, loss=1.0)
    return decider.decide(decider.see(whole, base_lr=1.0))[1].lr_multiplier


def skip_steps(decider: Decider, steps: int) -> Decider:
    """Return the decider after so many more steps of its batch; its state stays as it is."""
    base_steps = steps * decider.batch_size / decider.base_batch_size
    return replace(
        decider,
        step=decider.step + steps,
        samples=decider.samples + steps * decider.batch_size,
        base_steps=decider.base_steps + base_steps,
    )


def _step(decider: Decider) -> Decider:
    size = min(decider.batch_size, _budget(decider) - decider.samples)
    return decider.decide(decider.see(Reading(samples=size, loss=1.0), base_lr=1.0))[0]


def _only_lr_changes(decider: Decider, growths: list[Growth | Milestones], last_lr: float) -> bool:
    """Whether a stage of the table with the same batch and another rate begins here."""
    before, here = decider.samples - decider.batch_size, decider.samples * (1.0 + 1e-12)
    for growth in growths:
        if isinstance(growth, Growth) and growth.stages.lr:
            begins = list(boundaries(decider, growth))
            if any(before < begin <= here for begin in begins):
                return next_lr(decider) != last_lr
    return False


def _certain_steps(decider: Decider, growths: list[Growth | Milestones]) -> int:
    """Steps after which the batch is still the same for certain, and some are left to be made."""
    size, here = decider.batch_size, decider.samples
    points = [b for rule in growths for b in boundaries(decider, rule) if b > here]
    points.append(float(_budget(decider)))
    # two steps are left for what a point is rounded by
    return max(math.floor((min(points) - here) / size) - 2, 0)


def _budget(decider: Decider) -> int:
    assert decider.budget is not None
    assert decider.budget.samples is not None
    return decider.budget.samples
