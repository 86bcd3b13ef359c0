"""Measures a training loop that it does not drive: the user calls backward, clips and steps.

`StepRecorder` notes each backward. When the optimizer is about to step, `StepReader` groups the
backward calls into parts, enters the samples and weights that the user passed, lets the ranks add
up, and checks the result before a weight moves. `MeterChoice` says which steps are measured, and
replaces the meter if the loop makes one backward per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import Reading
from largebatch.measure import hand_reduced
from largebatch.measure.forwards import Samples
from largebatch.measure.meter import Meter
from largebatch.measure.meter_choice import MeterChoice
from largebatch.measure.step_parts import StepParts
from largebatch.measure.step_reader import FINAL, StepReader
from largebatch.measure.step_recorder import LEFT_OVER, StepRecorder
from largebatch.measure.taps import LeafHooks
from largebatch.measure.timetable import MeasuredSteps

REDUCTIONS = ("mean", "sum")


class Observer:
    """A meter for somebody else's loop.

    Mutable: holds what the step in hand has shown so far.

    Args:
        meter: with `LeafHooks` as its tap.
        batch_size: samples of a whole step over all ranks.
        micro_batches: backward calls a step on each rank; None takes what the first step shows.
        samples: (args, kwargs) of the model's forward pass -> samples in it; None takes equal
            shares of the batch, unless the user passes the samples of each micro-batch.
        reduction: "mean" if the loss of each rank is a mean over its own samples, as usual; "sum"
            if it is divided by the samples, or tokens, of all ranks.
        chooses: whether another meter may replace `meter` if the loop makes one backward per step
            on one process; see `one_backward`.
        looks_only: whether no decision depends on the measurement.

    Attributes:
        skipped: asked when gradients were cleared within a step: whether a scaler has skipped the
            step before. None means that nothing skips steps.

    Raises:
        ValueError: another tap, which would have to stand around each backward, or another
            reduction.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        batch_size: int,
        micro_batches: int | None = None,
        samples: Samples | None = None,
        reduction: str = "mean",
        chooses: bool = False,
        looks_only: bool = False,
    ) -> None:
        if not isinstance(meter.tap, LeafHooks):
            raise ValueError(
                f"{type(meter.tap).__name__} must stand around each backward, which only "
                "lb.Controller does. Use meter=lb.Meter(model) here."
            )
        if reduction not in REDUCTIONS:
            raise ValueError(f'reduction is "mean" or "sum"; got {reduction!r}.')
        self.meter, self.tap = meter, meter.tap
        self.batch_size = batch_size
        self._given = micro_batches
        self.skipped: Callable[[], bool] | None = None
        self._looks_only = looks_only
        allowed = chooses and meter.rank_count == 1
        self._choice = MeterChoice(allowed=allowed, looks_only=looks_only)
        self._reopened = False  # after an error, and no step came since
        self._rests = False  # this step and the last one measure nothing
        self._step = StepRecorder(
            meter,
            meter.tap,
            samples=samples,
            micro_batches=micro_batches,
            looks_only=looks_only,
        )
        self._parts = StepParts(
            self._step, batch_size=batch_size, micro_batches=micro_batches, samples=samples
        )
        self._reader = StepReader(
            self._step,
            self._parts,
            self._choice,
            batch_size=batch_size,
            reduction=reduction,
            counts_samples=samples is not None,
        )

    @property
    def micro_batches(self) -> int | None:
        """Return the micro-batches of a step on each rank, as given or as in the first step."""
        return self._parts.expected

    def bind(self, optimizer: Optimizer) -> None:
        """Set once whose parameters to measure."""
        self._optimizer = optimizer
        self._bind_meter()
        self._choice.bind(optimizer)
        self._step.bind(optimizer)
        self._step.skipped = lambda: self.skipped is not None and self.skipped()
        self._step.forwards.marks = self.meter.rank_count > 1

    def open(self, wanted: frozenset[str]) -> None:
        """Begin a step in which these statistics are wanted."""
        repeated, self._reopened = self._reopened, False
        self._open(wanted, repeated=repeated)

    @property
    def schedule(self) -> MeasuredSteps:
        """Return how often steps are measured."""
        return self._choice.timetable.schedule

    @property
    def measures(self) -> bool:
        """Return whether the step in hand is measured."""
        return self._step.watching

    @property
    def in_step(self) -> bool:
        """Return whether the step in hand has seen anything that a drop would lose."""
        step, parts = self._step, self._parts
        return bool(step.roots or step.running or parts.told or parts.losses)

    @property
    def saw_more(self) -> bool:
        """Return whether a backward ran after the step in hand was closed."""
        return len(self._step.roots) != self._closed

    @property
    def losses(self) -> int:
        """Return how many losses were passed in the step in hand."""
        return len(self._parts.losses)

    def drop(self, *, by: str) -> None:
        """Begin the step afresh; `by` is the call that asked for it."""
        dropped = by if self._step.roots else self._step.dropped
        self._reopened = False
        self._open(self._wanted, repeated=True)  # a step that is measured stays so
        self._step.dropped = dropped

    def size(self, samples: float | Tensor, *, weight: float | Tensor | None = None) -> None:
        """Set the samples, and the weight, of one micro-batch, once for each of the step."""
        self._parts.tell(self._parts.read(samples, weight))

    def loss(self, loss: Tensor) -> None:
        """Add the mean loss of one micro-batch."""
        self._parts.add_loss(loss)

    @contextmanager
    def part(
        self, *, samples: float | Tensor | None, weight: float | Tensor | None
    ) -> Iterator[None]:
        """Take all backward calls within the context for one part."""
        told = self._parts.read(samples, weight)
        try:
            with self._step.part():
                if samples is not None or weight is not None:
                    self._parts.tell(told)
                yield
        except GeneratorExit:  # a generator was left inside of the block, which is its end
            raise
        except BaseException:
            self.drop(by="an exception inside control.part()")
            raise

    def close(
        self, *, digest: int = 0, loss_scale: float = 1.0, problem: LargeBatchError | None = None
    ) -> Reading:
        """Combine the parts over the ranks: one collective, one host sync.

        An error that one rank finds is raised on all of them. After it the next step starts afresh.

        Args:
            digest: of what must be the same on all ranks.
            loss_scale: what the losses were multiplied with, as by a gradient scaler.
            problem: an error that the caller has found on this rank.

        Raises:
            MicroBatchMissed: not as many backward calls since the last step as were given, or
                gradients that were not cleared, or changed within the step.
            NoVariance: one part in each step so far, of which no variance can be known.
            LargeBatchError: parameters that got different numbers of gradients, or a batch size
                that the first step does not show.
        """
        self._step.problem = self._step.problem or self._step.forwards.problem or problem
        self._step.forwards.paused = True
        self._closed = len(self._step.roots)
        self._reopened = False
        try:
            return self._reader.read(digest=digest, unscale=loss_scale**-2)
        except LargeBatchError as error:
            self._choice.give_up_examples(self.meter, error)
            if self._reader.first:  # the loop may look different after its error
                self._parts.forget()
            self._open(self._wanted, repeated=True)
            self._reopened = True
            raise

    def detach(self) -> None:
        """Take every hook off the model."""
        self._step.detach()
        self.meter.part_source.rest()

    def _open(self, wanted: frozenset[str], *, repeated: bool) -> None:
        """Begin a step, or the step in hand once more."""
        self._wanted = wanted
        meter = self._choice.take()
        if meter is not None:
            self._take(meter)
        timetable = self._choice.timetable
        timetable.open(wanted, repeated=repeated)
        due = timetable.place is not None
        if self._looks_only and not due and self._rests:
            self._parts.open()
            self._step.forwards.open()
            return
        self._rests = self._looks_only and not due
        self.meter.open(wanted if due else frozenset())
        self._closed = 0
        self._parts.open()
        self._step.open()
        forwards = self._step.forwards
        forwards.paused = self._rests  # until a step is due, nothing looks at forward passes
        if self._looks_only and not self._reader.first:
            forwards.link(self._reader.links and not self._rests)
        may_choose = self._choice.allowed and self._reader.first and self._given in (None, 1)
        forwards.keeps = may_choose and self._step.watching

    def _bind_meter(self) -> None:
        by_hand = hand_reduced.NAMES if self.meter.replicated else ()
        self.meter.bind(self._optimizer, also=(LEFT_OVER, FINAL, *by_hand))
        self.meter.part_source.number_backwards(torch._C._current_graph_task_id)

    def _take(self, meter: Meter) -> None:
        """Measure with another meter from this step on."""
        self.meter.open(frozenset())
        self.meter = meter
        self._bind_meter()
        self._reader.use(meter)
