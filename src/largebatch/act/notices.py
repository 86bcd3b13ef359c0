"""What a run tells its user by warnings: once each, and on the first rank alone."""

from __future__ import annotations

import warnings

from largebatch.act.no_growth import NoGrowth, chooses_by_measuring
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement


class Notices:
    """Warns of each notice that a rule gives, and of a batch that does not grow.

    Mutable: holds what the run has seen of a batch that may still grow.

    Args:
        decider: before the first step.
        leader: whether this rank warns.
    """

    def __init__(self, decider: Decider, *, leader: bool) -> None:
        self._leader = leader
        self._growth: NoGrowth | None = None
        if leader and chooses_by_measuring(decider.rule):
            self._growth = NoGrowth(first=decider.batch_size)

    def resume(self, decider: Decider, *, notice: str = "") -> None:
        """Goes on where a saved run was: what it warned of before is not said again.

        Args:
            decider: of the run that resumes.
            notice: what to warn of at once; "" for nothing.
        """
        if notice and self._leader:
            warnings.warn(notice, RuntimeWarning, stacklevel=2)
        if self._growth is not None:
            self._growth.resume(decider)

    def tell(self, seen: Measurement, decision: Decision, *, after: Decider) -> None:
        """Warns of what one step brought.

        Args:
            seen, decision: of the step.
            after: the decider after it.
        """
        if decision.notice and self._leader:
            warnings.warn(decision.notice, RuntimeWarning, stacklevel=2)
        if self._growth is not None and not self._growth.settled:
            text = self._growth.check(seen, decision, after=after)
            if text:
                warnings.warn(text, RuntimeWarning, stacklevel=2)
