"""Switch once from a small to a large batch, when the gradient's norm no longer changes fast.

    switch if  |norm - previous norm| < threshold * previous norm,    checked every few epochs

Agarwal, Wang, Lee, Venkataraman, Papailiopoulos: Accordion: Adaptive Gradient Communication via
Critical Learning Regime Identification, 2020, arXiv 2010.16248.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import asking, whole_batch


def relative_change(*, before: float | None, norm: float) -> float:
    """Return |norm - before| / before, or `inf` if there is no earlier norm.

    >>> relative_change(before=10.0, norm=4.0), relative_change(before=None, norm=4.0)
    (0.6, inf)

    Args:
        before: Norm of the gradient at the last check, 0 or more; None at the first check.
        norm: Norm of the gradient now, 0 or more.
    """
    return abs(before - norm) / before if before else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class AccordionState:
    """Hold what Accordion remembers from step to step.

    Args:
        first: Batch size of the run's first step, in samples; 0 before the first step.
        large: Whether the rule has switched to the large batch.
        epoch: Number of the epoch whose squared norms are being summed.
        total: Sum of the squared norms in the current epoch.
        count: Number of squared norms in `total`.
        before: Norm of the gradient at the last check; None before the first check.
    """

    first: int = 0
    large: bool = False
    epoch: int = 0
    total: float = 0.0
    count: int = 0
    before: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accordion(DefaultFacts):
    """Multiply the batch size once, when the gradient's norm no longer changes fast.

    The norm of an epoch is the square root of the mean unbiased squared norm of its steps. The
    authors of Accordion instead sum the gradient over the epoch, which needs an additional buffer
    of the model's size. The batch never returns to the small size, as in the logs of the authors'
    runs.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=10, parts=2, batch_sqnorm=16.0, variance=0.0)
    >>> seen = Measurement(step=200, samples=1090, base_steps=109.0, batch_size=10,
    ...     base_batch_size=10, dataset_size=100, moments=m)
    >>> rule, proposed = Accordion(epochs=5), Decision(next_batch_size=10, base_steps=1)
    >>> rule.update(AccordionState(first=10, epoch=10, before=3.2), seen, proposed)[1].reason
    'norm of the gradient changed by 0.25 of its last value, below 0.5; batch size 80'

    Args:
        growth: Size of the large batch divided by the size of the first batch, above 1.
        threshold: Relative change of the norm, above 0. The batch stays small while the relative
            change of the norm is at least `threshold`.
        epochs: Number of epochs from one check to the next, at least 1.

    Raises:
        ValueError: If an argument is out of its range, or at the first step if the size of the data
            set is unknown.

    Reference: Agarwal, Wang, Lee, Venkataraman, Papailiopoulos, Accordion, 2020, arXiv 2010.16248.
    """

    growth: float = 8.0
    threshold: float = 0.5
    epochs: int = 10

    needs = frozenset({"moments", "dataset_size"})
    changes = frozenset({"batch"})
    references = ("agarwal2020accordion",)

    def __post_init__(self) -> None:
        sound = 1.0 < self.growth < math.inf and 0.0 < self.threshold < math.inf
        if not sound or self.epochs < 1:
            raise ValueError(
                f"{self} was given, but growth must be above 1, threshold above 0 and epochs at "
                "least 1. Example: Accordion(growth=8.0, threshold=0.5, epochs=10)"
            )

    def init(self) -> AccordionState:
        return AccordionState()

    def update(
        self, state: AccordionState, seen: Measurement, proposed: Decision
    ) -> tuple[AccordionState, Decision]:
        assert seen.dataset_size is not None, "checked at the start of the run"
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
        because = f"{because}; batch size {size}" if because else ""
        return state, asking(proposed, self.needs).resized(size, because=because)

    def _end_epoch(self, state: AccordionState, after: int) -> tuple[AccordionState, str]:
        """Return the state for the next epoch, and what the check after the current epoch found."""
        fresh = replace(state, epoch=after, total=0.0, count=0)
        if state.large or not state.count or not _multiple_within(self.epochs, state.epoch, after):
            return fresh, ""
        norm = math.sqrt(max(state.total / state.count, 0.0))
        change = relative_change(before=state.before, norm=norm)
        large = change < self.threshold
        level = f"{'below' if large else 'not below'} {self.threshold:.4g}"
        found = f"norm of the gradient changed by {change:.4g} of its last value, {level}"
        if state.before is None:
            found = "norm of the gradient checked for the first time"
        return replace(fresh, large=large, before=norm), found


def _multiple_within(step: int, begin: int, end: int) -> bool:
    """Return whether one of the epochs from `begin` to before `end` is a multiple of `step`."""
    return -(-begin // step) * step < end
