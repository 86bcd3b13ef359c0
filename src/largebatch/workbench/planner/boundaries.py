"""What a rule on the clock says before a run: its first batch, and where the batch may change."""

from __future__ import annotations

import math
from collections.abc import Iterator

from largebatch.core.decider import Decider
from largebatch.core.rule import Chain, Rule, chain, within
from largebatch.rules import Growth, Milestones

ON_THE_CLOCK = frozenset(
    {
        "Chain", "ClampBatch", "ClampLr", "Growth", "Legw", "LimitGrowth", "LinearScaling",
        "Milestones", "Schedule", "SqrtScaling", "WarmUp",
    }
)  # fmt: skip
"""Rules that decide by the clock, the table and the batch in hand."""


def on_the_clock(rule: Rule) -> Chain:
    """The rule as a chain, all of which decides by the clock.

    Raises:
        ValueError: a rule that looks at more.
    """
    whole = chain(rule)
    other = {type(one).__name__ for one in within(whole)} - ON_THE_CLOCK
    if other:
        raise ValueError(
            f"{', '.join(sorted(other))} decides by what a run measures, so its steps are not "
            "known before: largebatch plan --dry-run takes growth, linear-growth, warmup-growth, "
            'seesaw, smith, constant, cosine, a string such as "0:768 250B:1536", or a file.'
        )
    return whole


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
