"""Accordion's switch: a small batch while the gradient's norm still changes fast, then a large one.

    large batch  once  |norm - norm before| < threshold norm before,    every so many epochs

Agarwal, Wang, Lee, Venkataraman, Papailiopoulos: Accordion: Adaptive Gradient Communication via
Critical Learning Regime Identification, 2021, arXiv 2010.16248.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import asking, whole_batch


def relative_change(*, before: float | None, norm: float) -> float:
    """|norm - before| / before; `inf` without a past.

    >>> relative_change(before=10.0, norm=4.0), relative_change(before=None, norm=4.0)
    (0.6, inf)

    Args:
        before: the norm some epochs earlier, 0 or more; None where there is none.
        norm: the norm now, 0 or more.
    """
    return abs(before - norm) / before if before else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class AccordionState:
    """What Accordion remembers.

    Args:
        first: the run's first batch in samples, 0 before it.
        large: whether the switch was made.
        epoch: the one that is summed.
        total, count: sum and number of the squared norms in it.
        before: the norm at the last check; None before.
    """

    first: int = 0
    large: bool = False
    epoch: int = 0
    total: float = 0.0
    count: int = 0
    before: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accordion(DefaultFacts):
    """Multiplies the batch once, when the gradient's norm has ceased to change fast.

    The norm of an epoch is the root of the mean unbiased squared norm of its steps, which needs no
    memory; the authors sum the gradient itself over the epoch, in one more buffer. In the logs of
    their runs the batch never went back to the small one, so here it does not.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=10, parts=2, batch_sqnorm=16.0, variance=0.0)
    >>> seen = Measurement(step=200, samples=1090, base_steps=109.0, batch_size=10,
    ...     base_batch_size=10, dataset_size=100, moments=m)
    >>> rule, proposed = Accordion(epochs=5), Decision(next_batch_size=10, base_steps=1)
    >>> rule.update(AccordionState(first=10, epoch=10, before=3.2), seen, proposed)[1].reason
    'norm changed by 0.25 < 0.5; batch 80'

    Args:
        growth: the large batch over the first one, above 1.
        threshold: relative change of the norm from which on training is critical, above 0.
        epochs: from one check to the next, at least 1.

    Raises:
        ValueError: a number out of its range; at the first step, an unknown dataset size.

    Reference: arXiv 2010.16248.
    """

    growth: float = 8.0
    threshold: float = 0.5
    epochs: int = 10

    needs = frozenset({"moments", "dataset_size"})
    changes = frozenset({"batch"})

    def __post_init__(self) -> None:
        sound = 1.0 < self.growth < math.inf and 0.0 < self.threshold < math.inf
        if not sound or self.epochs < 1:
            raise ValueError(
                "Accordion takes a growth above 1, a threshold above 0 and at least one epoch, as "
                f"in Accordion(growth=8.0, threshold=0.5, epochs=10); got {self}."
            )

    def init(self) -> AccordionState:
        return AccordionState()

    def update(
        self, state: AccordionState, seen: Measurement, proposed: Decision
    ) -> tuple[AccordionState, Decision]:
        assert seen.dataset_size is not None, "a run without it is refused"
        first = state.first or proposed.next_batch_size
        state = (
            replace(state, first=first)
            if seen.moments is None
            else replace(
                state,
                first=first,
                total=state.total + seen.moments.sqnorm,
                count=state.count + 1,
            )
        )
        after = (seen.samples + seen.batch_size) // seen.dataset_size
        because = ""
        if after > state.epoch:
            state, because = self._end_epoch(state, after)
        size = whole_batch(
            first * (self.growth if state.large else 1.0),
            ranks=seen.ranks,
            dataset_size=seen.dataset_size,
        )
        because = f"{because}; batch {size}" if because else ""
        return state, asking(proposed, self.needs).resized(size, because=because)

    def _end_epoch(self, state: AccordionState, after: int) -> tuple[AccordionState, str]:
        """The state in the next epoch, and what a check found at the end of this one."""
        fresh = replace(state, epoch=after, total=0.0, count=0)
        if state.large or not state.count or not _multiple_within(self.epochs, state.epoch, after):
            return fresh, ""
        norm = math.sqrt(max(state.total / state.count, 0.0))
        change = relative_change(before=state.before, norm=norm)
        large = change < self.threshold
        found = f"norm changed by {change:.4g} {'<' if large else '>='} {self.threshold:.4g}"
        return replace(fresh, large=large, before=norm), found


def _multiple_within(step: int, begin: int, end: int) -> bool:
    """Whether a multiple of the step is among the epochs from `begin` to before `end`."""
    return -(-begin // step) * step < end
