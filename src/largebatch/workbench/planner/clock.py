"""Count the steps of a run whose schedule depends only on the number of samples and steps.

The rule is evaluated only at the points at which its batch size may change. The number of steps
between two changes of the batch size is computed by one division, so counting takes as long for a
budget of 10^13 samples as for a budget of 10^4 samples.
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
    """Describe consecutive steps with one batch size.

    Args:
        first: State before the first step of the stage.
        last: State after the last step of the stage.
        lr, last_lr: Factors on the base learning rate in the first and in the last step.
    """

    first: Decider
    last: Decider
    lr: float
    last_lr: float

    @property
    def steps(self) -> int:
        """Return the number of steps of the stage."""
        return self.last.step - self.first.step

    def lr_after(self, steps: int) -> float:
        """Return the factor on the base learning rate after the given number of steps."""
        return next_lr(skip_steps(self.first, steps))


def on_the_clock(rule: Rule) -> Chain:
    """Return the rule as a chain, and check that its steps can be counted before the run.

    The decisions of every rule in the chain must depend only on the numbers of samples and steps.

    Raises:
        ValueError: A rule in the chain needs measurements or remembers past steps.
    """
    whole = chain(rule)
    other = sorted({name_of(one) for one in within(whole) if not decides_by_the_clock(one)})
    if other:
        raise ValueError(
            f"{', '.join(other)} decides by measurements during the run, so its steps cannot be "
            "counted before the run. Use a schedule with known steps: growth, linear-growth, "
            'warmup-growth, seesaw, smith, constant, cosine, a string such as "0:768 250B:1536", '
            "or a schedule file."
        )
    return whole


def decides_by_the_clock(rule: Rule) -> bool:
    """Return whether a rule decides by nothing but the numbers of samples and steps.

    The decisions may also depend on the current batch size.

    A rule that decides by the numbers of samples and steps needs no measurement, does not change
    how base steps are counted and remembers nothing of past steps. The position in a table of
    stages is not counted as memory, because the position follows from the numbers of samples and
    steps.

    >>> from largebatch.rules import StepClock
    >>> decides_by_the_clock(Growth()), decides_by_the_clock(StepClock())
    (True, False)
    """
    measures = rule.needs & (STATISTICS | {"loss"})
    remembers = not isinstance(rule, (Growth, Milestones, Chain)) and rule.init() is not None
    return not measures and "clock" not in rule.changes and not remembers


def growths_of(rule: Rule) -> list[Growth | Milestones]:
    """Return the rules within a chain that change the batch size at given points of the run."""
    return [one for one in within(rule) if isinstance(one, (Growth, Milestones))]


def boundaries(decider: Decider, rule: Growth | Milestones) -> Iterator[float]:
    """Yield the points at which the batch size may change, in samples from the start of the run."""
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
    """Return the size of the first batch if the schedule gives batch sizes in samples, else None.

    A schedule can also give batch sizes as multiples of the base batch size.
    """
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
    """Return the state before the first step of a run that is counted without training.

    Args:
        rule: Rule whose decisions depend only on the numbers of samples and steps.
        budget: Number of training samples of the run.
        base_batch_size: Base batch size B0, in samples.
        batch_size: Size of the first batch in samples. If batch_size is omitted, the run starts
            with the first batch size of the schedule, or with the base batch size if the schedule
            sets no batch size in samples.
        dataset_size: Number of samples in an epoch, or None if batches may cross the end of an
            epoch.

    Raises:
        ValueError: The rule or the budget is invalid; see `clock_schedule`.
    """
    whole = on_the_clock(rule)
    first = batch_size or first_batch_of(whole) or base_batch_size
    if not isinstance(budget, int) or not first <= budget <= MAX_SAMPLES:
        raise ValueError(
            f"budget={budget!r} was given, but the budget must be a whole number of samples "
            f"between the size of the first batch, {first:,}, and {MAX_SAMPLES:,}. Pass "
            "budget=10_000_000"
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
        decider: State before the first step, as `start_decider` returns it.
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
            # A bound on growth may change the batch size in every step; then nothing is skipped.
            if decider.batch_size == first.batch_size:
                decider = skip_steps(decider, _certain_steps(decider, growths))
        yield ClockStage(first=first, last=decider, lr=lr, last_lr=last_lr)


def next_lr(decider: Decider) -> float:
    """Return the factor on the base learning rate in the next step, if its batch is full."""
    whole = Reading(samples=decider.batch_size, loss=1.0)
    return decider.decide(decider.see(whole, base_lr=1.0))[1].lr_multiplier


def skip_steps(decider: Decider, steps: int) -> Decider:
    """Return the decider after more steps at its batch size; its rules keep their states."""
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
    """Return whether a stage that changes only the learning rate begins at the next step."""
    before, here = decider.samples - decider.batch_size, decider.samples * (1.0 + 1e-12)
    for growth in growths:
        if isinstance(growth, Growth) and growth.stages.lr:
            begins = list(boundaries(decider, growth))
            if any(before < begin <= here for begin in begins):
                return next_lr(decider) != last_lr
    return False


def _certain_steps(decider: Decider, growths: list[Growth | Milestones]) -> int:
    """Return how many steps can be skipped without reaching a change of the batch size."""
    size, here = decider.batch_size, decider.samples
    points = [b for rule in growths for b in boundaries(decider, rule) if b > here]
    points.append(float(_budget(decider)))
    # Two steps are kept back, because rounding may move a change by up to two steps.
    return max(math.floor((min(points) - here) / size) - 2, 0)


def _budget(decider: Decider) -> int:
    assert decider.budget is not None
    assert decider.budget.samples is not None
    return decider.budget.samples
