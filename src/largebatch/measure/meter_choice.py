"""Replaces the meter of a loop that shows one backward per step, and says which steps it measures.

What is chosen, and why, is in `one_backward`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError, NoVariance
from largebatch.measure import one_backward
from largebatch.measure.backwards import Group
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.examples_trial import SeenStep
from largebatch.measure.meter import Meter
from largebatch.measure.step_recorder import StepRecorder
from largebatch.measure.timetable import EVERY_STEP, Timetable


class MeterChoice:
    """The meter of the coming steps, if it is another one than that of the step in hand.

    Mutable: holds the meter until it is taken, and counts the measured steps.

    Args:
        allowed: whether another meter may be chosen at all.
        looks_only: whether no decision depends on the measurement.

    Attributes:
        allowed: whether a meter may still be chosen.
        coming: the meter that replaces the present one in the next step; None if it stays.
        by_examples: whether single examples were chosen.
        timetable: which steps are measured.
    """

    def __init__(self, *, allowed: bool, looks_only: bool) -> None:
        self.allowed, self._looks_only = allowed, looks_only
        self.coming: Meter | None = None
        self.by_examples = False
        self.timetable = Timetable(EVERY_STEP)
        self._schedule = EVERY_STEP
        self._refusals: Sequence[str] = ()

    def bind(self, optimizer: Optimizer) -> None:
        """Set once whose gradients are measured."""
        self._optimizer = optimizer

    def choose(
        self,
        step: StepRecorder,
        groups: Sequence[Group],
        *,
        batch_size: int,
    ) -> None:
        """Choose by a step of one part, before its weights move.

        Args:
            step: what it has shown.
            groups: its parts.
            batch_size: samples of a step, as given; 0 if the user counts them.
        """
        forwards, gradients = step.forwards, step.gradients
        seen = SeenStep(
            forwards=forwards.kept,
            complete=gradients is not None and len(forwards.kept) == forwards.in_step,
            gradients=gradients or {},
            several=max(map(len, groups), default=0),
        )
        self._replace(
            one_backward.choose_meter(
                step.meter.model,
                self._optimizer,
                seen,
                batch_size=batch_size,
                looks_only=self._looks_only,
            )
        )

    def give_up_examples(self, meter: Meter, error: LargeBatchError) -> None:
        """Choose pairs of steps if an error says that single examples cannot be measured here, and
        no decision depends on them."""
        failed = error.__cause__ is not None  # an exception of another kind inside the measuring
        of_examples = isinstance(error, ExamplesRefused) or failed
        if self.by_examples and self._looks_only and of_examples:
            self._replace(one_backward.pairs_of_steps(meter.model, [str(error)]))

    def take(self) -> Meter | None:
        """Return the coming meter, which measures from this step on; None if the present stays."""
        meter, self.coming = self.coming, None
        if meter is not None:
            self.allowed = False
            self.timetable = Timetable(self._schedule)
        return meter

    def no_variance(self, cause: str) -> NoVariance:
        """Return the error of a loop without a variance: why no meter serves, or else `cause`."""
        refusals = self._refusals
        return NoVariance(one_backward.no_variance(refusals) if refusals else cause)

    def _replace(self, choice: one_backward.Choice) -> None:
        self.coming, self._refusals = choice.meter, choice.refusals
        self._schedule, self.by_examples = choice.schedule, choice.by_examples
