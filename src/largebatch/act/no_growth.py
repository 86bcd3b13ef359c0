"""Detect a run whose rule could grow the batch, but has not grown the batch in the first part of
the budget.
"""

from __future__ import annotations

from collections.abc import Iterator

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import STATISTICS, Measurement
from largebatch.core.rule import Chain, Rule, Wrapper, label_of, names_within, within

PART = 0.25
"""Fraction of the budget after which a warning names a batch that has not grown."""

FEWEST = 20
"""Number of optimizer steps below which an unchanged batch size is no reason for a warning."""


def chooses_by_measuring(rule: Rule) -> bool:
    """Return whether a measured statistic decides about the batch size from the first step on.

    `AutoWarmUp` is excluded, because `AutoWarmUp` keeps the batch size during the warm-up.
    """
    return any(_measured(one) for one in _batch_rules(rule)) and (
        "AutoWarmUp" not in names_within(rule)
    )


class NoGrowth:
    """Wait for the first growth of the batch, or for the end of the first quarter of the budget.

    This class is mutable: it holds the reason of the last measured decision, and whether the wait
    is over.

    Args:
        first: Number of samples in the first batch of the run.

    Attributes:
        settled: Whether the wait for the first growth of the batch is over.
    """

    def __init__(self, *, first: int) -> None:
        self._first = first
        self._reason = ""
        self.settled = False

    def resume(self, decider: Decider) -> None:
        """Continue from a saved run, although only the saved counters of samples and steps are
        known.

        The wait is over if the run is past the first quarter of its budget, because the saved run
        has then already warned. The wait is also over if the mean batch or the current batch is
        larger than the first batch.
        """
        steps = decider.step + decider.skipped
        grown = decider.batch_size > self._first or decider.samples > steps * self._first
        self.settled = self.settled or grown or _is_due(decider)

    def check(self, seen: Measurement, decision: Decision, *, after: Decider) -> str:
        """Return the warning to give after a step; "" for no warning.

        Args:
            seen, decision: Measurement and decision of the step.
            after: Decider after the step.
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
    """Yield the rules inside a rule that themselves change or bound the batch size."""
    for one in within(rule):
        if not isinstance(one, (Chain, Wrapper)) and "batch" in one.changes | one.bounds:
            yield one


def _measured(rule: Rule) -> bool:
    return not STATISTICS.isdisjoint(rule.needs)


def _is_due(decider: Decider) -> bool:
    """Return whether a quarter of the budget is used after at least FEWEST optimizer steps.

    The result is False without a budget.
    """
    if decider.budget is None or decider.step < FEWEST:
        return False
    used = decider.budget.used(
        step=decider.step, samples=decider.samples, base_steps=decider.base_steps
    )
    return used >= PART


def _clock_asks(seen: Measurement, after: Decider, *, first: int) -> bool:
    """Return whether a rule that depends only on the number of samples or steps would use a larger
    batch now if nothing bounded the batch.

    The decision depends on the numbers of samples and steps alone, so `_clock_asks` runs the rule
    again from the rule's initial state.
    """
    proposed = Decision(next_batch_size=first, base_steps=seen.scale)
    proposers = [one for one in _batch_rules(after.rule) if "batch" in one.changes]
    asked = [one.update(one.init(), seen, proposed)[1].next_batch_size for one in proposers]
    return any(size > first for size in asked)


def _text(names: str, *, seen: Measurement, after: Decider, reason: str) -> str:
    size = after.batch_size
    begin = (
        f"The batch did not grow: it has {size} samples after {PART:.0%} of the budget "
        f"({after.step} optimizer steps, {after.samples} samples). "
    )
    often = (
        "Measure more often, as in lb.methods.adasgd(every=2) or "
        "lb.methods.full_gradient_growth(check=50)."
    )
    if not reason:
        return (
            f"{begin}{names} has measured nothing so far, so it could not choose a larger batch. "
            f"{often}"
        )
    return (
        f"{begin}The reason given at the last measurement was: {reason}. If the noise scale is "
        "below the batch size, nothing is wrong: a larger batch would save hardly any steps. In "
        "this case, you can keep a constant batch and measure nothing: lb.Controller(model, "
        f"optimizer, lb.chain(), batches, base_batch_size={after.base_batch_size}). If the noise "
        f"scale is not known yet, more measurements help. {often} If a bound prevents the growth, "
        "raise the bound, as in lb.methods.adasgd(max=4096)."
    )
