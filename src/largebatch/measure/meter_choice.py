"""Choose another meter for a loop that makes one backward call per step.

The module `one_backward` describes the choice and its reasons.
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
    """Hold the meter that replaces the present meter from the next step on.

    Mutable: holds the new meter until `take` returns it, and counts the measured steps.

    Args:
        allowed: Whether another meter may be chosen at all.
        looks_only: Whether measurements are only displayed, so that no decision depends on them.

    Attributes:
        allowed: Whether another meter may still be chosen.
        coming: Meter that replaces the present meter in the next step; None if the present meter
            stays.
        by_examples: Whether the new meter measures single examples.
        timetable: Schedule of the measured steps.
    """

    def __init__(self, *, allowed: bool, looks_only: bool) -> None:
        self.allowed, self._looks_only = allowed, looks_only
        self.coming: Meter | None = None
        self.by_examples = False
        self.timetable = Timetable(EVERY_STEP)
        self._schedule = EVERY_STEP
        self._refusals: Sequence[str] = ()

    def bind(self, optimizer: Optimizer) -> None:
        """Set the optimizer whose gradients are measured; `bind` must be called only once."""
        self._optimizer = optimizer

    def choose(
        self,
        step: StepRecorder,
        groups: Sequence[Group],
        *,
        batch_size: int,
    ) -> None:
        """Choose a meter from a step with one backward call, before the weights change.

        Args:
            step: The recorded step.
            groups: The backward calls of each micro-batch of the step.
            batch_size: User-supplied number of samples per step; 0 if the user counts the samples
                in the loop.
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
        """Measure pairs of steps instead of single examples if single examples cannot be measured.

        Args:
            meter: The meter that raised the error.
            error: The error that was raised while the step was measured.
        """
        failed = error.__cause__ is not None  # another exception was raised while measuring
        of_examples = isinstance(error, ExamplesRefused) or failed
        if self.by_examples and self._looks_only and of_examples:
            self._replace(one_backward.pairs_of_steps(meter.model, [str(error)]))

    def take(self) -> Meter | None:
        """Return the new meter that measures from this step on; None if the present meter stays."""
        meter, self.coming = self.coming, None
        if meter is not None:
            self.allowed = False
            self.timetable = Timetable(self._schedule)
        return meter

    def no_variance(self, cause: str) -> NoVariance:
        """Return the error for a loop without a variance; `cause` is the default text."""
        refusals = self._refusals
        return NoVariance(one_backward.no_variance(refusals) if refusals else cause)

    def _replace(self, choice: one_backward.Choice) -> None:
        self.coming, self._refusals = choice.meter, choice.refusals
        self._schedule, self.by_examples = choice.schedule, choice.by_examples
