"""Finds a run whose rule could grow the batch, and that has not done so in part of its budget."""

from __future__ import annotations

from collections.abc import Iterator

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import STATISTICS, Measurement
from largebatch.core.rule import Chain, Rule, Wrapper, label_of, names_within, within

PART = 0.25
"""Fraction of the budget after which a batch that has not grown is named."""

FEWEST = 20
"""Optimizer steps before which that says nothing."""


def chooses_by_measuring(rule: Rule) -> bool:
    """Return whether a measured statistic decides about the batch, from the first step on.

    `AutoWarmUp` keeps the batch for as long as it warms up, and is left out.
    """
    return any(_measured(one) for one in _batch_rules(rule)) and (
        "AutoWarmUp" not in names_within(rule)
    )


class NoGrowth:
    """Waits for the first growth of a batch, or for the end of the first quarter of the budget.

    Mutable: holds the last reason given with a measurement, and whether the wait is over.

    Args:
        first: samples of the run's first batch.

    Attributes:
        settled: whether nothing is left to wait for.
    """

    def __init__(self, *, first: int) -> None:
        self._first = first
        self._reason = ""
        self.settled = False

    def resume(self, decider: Decider) -> None:
        """Goes on from a saved run, of which the clocks alone are known.

        The wait is over if the run is past the quarter, where it was warned before, or if its mean
        batch or the batch in hand is larger than the first one.
        """
        steps = decider.step + decider.skipped
        grown = decider.batch_size > self._first or decider.samples > steps * self._first
        self.settled = self.settled or grown or _is_due(decider)

    def check(self, seen: Measurement, decision: Decision, *, after: Decider) -> str:
        """Return what to warn of after a step; "" for nothing.

        Args:
            seen, decision: of the step.
            after: the decider after it.
        """
        self.settled = self.settled or after.batch_size > self._first
        if self.settled:
            return ""
        if decision.reason and any(getattr(seen, name) is not None for name in STATISTICS):
            self._reason = decision.reason
        if not _is_due(after):
            return ""
        self.settled = True
        measured = [one for one in _batch_rules(after.rule) if _measured(one)]
        if not any("batch" in one.changes for one in measured) and not _clock_asks(
            seen, after, first=self._first
        ):
            return ""
        names = ", ".join([label_of(one) for one in measured])
        return _text(names, seen=seen, after=after, reason=self._reason)


def _batch_rules(rule: Rule) -> Iterator[Rule]:
    """Yield the rules within a rule that change or bound the batch by themselves."""
    for one in within(rule):
        if not isinstance(one, (Chain, Wrapper)) and "batch" in one.changes | one.bounds:
            yield one


def _measured(rule: Rule) -> bool:
    return not STATISTICS.isdisjoint(rule.needs)


def _is_due(decider: Decider) -> bool:
    """Return whether a quarter of the budget is used, in FEWEST steps or more; False without a
    budget."""
    if decider.budget is None or decider.step < FEWEST:
        return False
    used = decider.budget.used(
        step=decider.step, samples=decider.samples, base_steps=decider.base_steps
    )
    return used >= PART


def _clock_asks(seen: Measurement, after: Decider, *, first: int) -> bool:
    """Return whether a rule on the clock would have a larger batch by now, if nothing bounded it.

    Such a rule decides from the clocks alone, so it is asked anew, from its first state.
    """
    proposed = Decision(next_batch_size=first, base_steps=seen.scale)
    proposers = [one for one in _batch_rules(after.rule) if "batch" in one.changes]
    asked = [one.update(one.init(), seen, proposed)[1].next_batch_size for one in proposers]
    return any(size > first for size in asked)


def _text(names: str, *, seen: Measurement, after: Decider, reason: str) -> str:
    size = after.batch_size
    begin = (
        f"The batch did not grow: it is {size} samples after {PART:.0%} of the budget "
        f"({after.step} optimizer steps, {after.samples} samples). "
    )
    often = (
        "Measure more often, as in lb.methods.adasgd(every=2) or "
        "lb.methods.full_gradient_growth(check=50)."
    )
    if not reason:
        return (
            f"{begin}{names} has measured nothing so far, so no larger batch could be tried. "
            f"{often}"
        )
    return (
        f"{begin}The last measurement said: {reason}. If the noise scale is below the batch, a "
        "larger batch saves hardly any steps. Then nothing is wrong with the run, and a constant "
        "batch without measurements is as good: lb.Controller(model, optimizer, lb.chain(), "
        f"batches, base_batch_size={after.base_batch_size}). If the noise scale is not known yet: "
        f"{often} If a bound keeps the batch, raise it, as in lb.methods.adasgd(max=4096)."
    )
