"""Warn the user about events in a run: once per event, and on the first rank only."""

from __future__ import annotations

import warnings

from largebatch.act.no_growth import NoGrowth, chooses_by_measuring
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement


class Notices:
    """Warn about each notice that a rule gives, and about a batch that does not grow.

    This class is mutable: it remembers whether the batch has grown.

    Args:
        decider: Decider before the first step.
        leader: Whether this rank gives the warnings.
    """

    def __init__(self, decider: Decider, *, leader: bool) -> None:
        self._leader = leader
        self._growth: NoGrowth | None = None
        if leader and chooses_by_measuring(decider.rule):
            self._growth = NoGrowth(first=decider.batch_size)

    def resume(self, decider: Decider, *, notice: str = "") -> None:
        """Continue from a saved run without repeating the warnings of that run.

        Args:
            decider: Decider of the run that resumes.
            notice: Text of a warning to give at once; "" for none.
        """
        if notice and self._leader:
            warnings.warn(notice, RuntimeWarning, stacklevel=2)
        if self._growth is not None:
            self._growth.resume(decider)

    def tell(self, seen: Measurement, decision: Decision, *, after: Decider) -> None:
        """Warn if a step gave a notice, or if its batch should have grown by now.

        Args:
            seen, decision: Measurement and decision of the step.
            after: Decider after the step.
        """
        if decision.notice and self._leader:
            warnings.warn(decision.notice, RuntimeWarning, stacklevel=2)
        if self._growth is not None and not self._growth.settled:
            text = self._growth.check(seen, decision, after=after)
            if text:
                warnings.warn(text, RuntimeWarning, stacklevel=2)
