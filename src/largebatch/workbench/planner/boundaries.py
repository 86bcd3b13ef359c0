"""What a rule on the clock says before a run: its first batch, and where the batch may change."""

from __future__ import annotations

import math
from collections.abc import Iterator

from largebatch.core.decider import Decider
from largebatch.core.measurement import STATISTICS
from largebatch.core.rule import Chain, Rule, chain, name_of, within
from largebatch.rules import Growth, Milestones


def on_the_clock(rule: Rule) -> Chain:
    """The rule as a chain, all of which decides by the clock.

    Raises:
        ValueError: a rule that looks at more.
    """
    whole = chain(rule)
    other = sorted({name_of(one) for one in within(whole) if not decides_by_the_clock(one)})
    if other:
        raise ValueError(
            f"{', '.join(other)} decides by what a run measures, so its steps are not "
            "known before: largebatch plan --dry-run takes growth, linear-growth, warmup-growth, "
            'seesaw, smith, constant, cosine, a string such as "0:768 250B:1536", or a file.'
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
    """Those of its rules that change the batch at given points."""
    return [one for one in within(rule) if isinstance(one, (Growth, Milestones))]


def boundaries(decider: Decider, rule: Growth | Milestones) -> Iterator[float]:
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


def first_of(rule: Chain) -> int | None:
    """Samples of the first batch where the table's batches are absolute, else None."""
    absolute = [g.stages for g in growths_of(rule) if isinstance(g, Growth) and g.stages.of]
    return math.ceil(absolute[0].required(0, first=1) * (1.0 - 1e-12)) if absolute else None
