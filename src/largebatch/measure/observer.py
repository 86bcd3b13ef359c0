"""Measure the gradients of the user's own training loop.

`StepRecorder` records each backward call. Before the optimizer step, `StepReader` groups the
backward calls by micro-batch, applies the samples and weights that the user passed, sums over the
ranks, and checks the result before any weight changes. `MeterChoice` decides which steps are
measured, and replaces the meter if the loop makes one backward call per step.
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
    """Measure each step of a training loop in which the user calls backward and the optimizer step.

    Mutable: holds the measurements of the current step.

    Args:
        meter: The meter; its tap must be `LeafHooks`.
        batch_size: Number of samples in one optimizer step over all ranks.
        micro_batches: Number of micro-batches per step on each rank; None infers the number from
            the first training step.
        samples: Function (args, kwargs) of the model's forward pass -> number of samples in the
            forward pass. None assumes that micro-batches have equal numbers of samples, unless the
            user passes the samples of each micro-batch.
        reduction: "mean" if the loss of each rank is a mean over its own samples, as usual; "sum"
            if the loss is divided by the samples, or tokens, of all ranks.
        chooses: Whether another meter may replace `meter` if the loop makes one backward call per
            step on one process; see the module `one_backward`.
        looks_only: Whether measurements are only displayed, so that no decision depends on them.

    Attributes:
        skipped: Function that returns whether a gradient scaler skipped the last step, called if
            gradients were cleared within a step. None means that no scaler is used.

    Raises:
        ValueError: The meter has a tap other than `LeafHooks`, or `reduction` is neither "mean" nor
            "sum".
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
                f"The tap {type(meter.tap).__name__} was given, but it works only in "
                "lb.Controller, which runs each backward call itself. Use meter=lb.Meter(model)."
            )
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction={reduction!r} was given, but it must be 'mean' or 'sum'. If the loss "
                "of each rank is a mean over its own samples, pass reduction='mean'."
            )
        self.meter, self.tap = meter, meter.tap
        self.batch_size = batch_size
        self._given = micro_batches
        self.skipped: Callable[[], bool] | None = None
        self._looks_only = looks_only
        allowed = chooses and meter.rank_count == 1
        self._choice = MeterChoice(allowed=allowed, looks_only=looks_only)
        self._reopened = False  # whether the current step began after an error
        self._rests = False  # whether this step and the last one are not measured
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
        """Return the number of micro-batches per step on each rank; None if not yet known."""
        return self._parts.expected

    def bind(self, optimizer: Optimizer) -> None:
        """Set the optimizer whose parameters are measured; `bind` must be called only once."""
        self._optimizer = optimizer
        self._bind_meter()
        self._choice.bind(optimizer)
        self._step.bind(optimizer)
        self._step.skipped = lambda: self.skipped is not None and self.skipped()
        self._step.forwards.marks = self.meter.rank_count > 1

    def open(self, wanted: frozenset[str]) -> None:
        """Begin a training step in which the statistics `wanted` are requested."""
        repeated, self._reopened = self._reopened, False
        self._open(wanted, repeated=repeated)

    @property
    def schedule(self) -> MeasuredSteps:
        """Return how often steps are measured."""
        return self._choice.timetable.schedule

    @property
    def measures(self) -> bool:
        """Return whether the current step is measured."""
        return self._step.watching

    @property
    def in_step(self) -> bool:
        """Return whether the current step has recorded measurements that `drop` would discard."""
        step, parts = self._step, self._parts
        return bool(step.roots or step.running or parts.passed or parts.losses)

    @property
    def saw_more(self) -> bool:
        """Return whether a backward call ran after the current step was closed."""
        return len(self._step.roots) != self._closed

    @property
    def losses(self) -> int:
        """Return the number of losses that were passed in the current step."""
        return len(self._parts.losses)

    def drop(self, *, by: str) -> None:
        """Discard what the current step has recorded; `by` names the call that requested it."""
        dropped = by if self._step.roots else self._step.dropped
        self._reopened = False
        self._open(self._wanted, repeated=True)  # a measured step is measured again
        self._step.dropped = dropped

    def size(self, samples: float | Tensor, *, weight: float | Tensor | None = None) -> None:
        """Set the samples and the weight of one micro-batch, once per micro-batch."""
        self._parts.add_sizes(self._parts.read(samples, weight))

    def loss(self, loss: Tensor) -> None:
        """Add the mean loss of one micro-batch."""
        self._parts.add_loss(loss)

    @contextmanager
    def part(
        self, *, samples: float | Tensor | None, weight: float | Tensor | None
    ) -> Iterator[None]:
        """Treat all backward calls within the context as one micro-batch."""
        passed = self._parts.read(samples, weight)
        try:
            with self._step.part():
                if samples is not None or weight is not None:
                    self._parts.add_sizes(passed)
                yield
        except GeneratorExit:  # the user left a generator inside the block, which ends the block
            raise
        except BaseException:
            self.drop(by="an exception inside control.part()")
            raise

    def close(
        self, *, digest: int = 0, loss_scale: float = 1.0, problem: LargeBatchError | None = None
    ) -> Reading:
        """Sum the step's measurements over the ranks with one all-reduce and one host sync.

        An error of one rank is raised on all ranks. After an error the next step is measured as
        usual.

        Args:
            digest: Digest of the state that must be the same on all ranks.
            loss_scale: Factor of the losses, such as the scale of a gradient scaler.
            problem: An error that the caller found on this rank.

        Raises:
            MicroBatchMissed: The number of backward calls differs from `micro_batches`, the
                gradients were not cleared after the last step, or the gradients were changed within
                the current step. NoVariance: Each step so far had one separately measured gradient,
                which has no variance.
            LargeBatchError: The parameters got different numbers of gradients, or the batch size
                differs from the samples in the first step.
        """
        self._step.problem = self._step.problem or self._step.forwards.problem or problem
        self._step.forwards.paused = True
        self._closed = len(self._step.roots)
        self._reopened = False
        try:
            return self._reader.read(digest=digest, unscale=loss_scale**-2)
        except LargeBatchError as error:
            self._choice.give_up_examples(self.meter, error)
            if self._reader.first:  # the user may change the loop after the error
                self._parts.forget()
            self._open(self._wanted, repeated=True)
            self._reopened = True
            raise

    def detach(self) -> None:
        """Remove all hooks from the model."""
        self._step.detach()
        self.meter.part_source.rest()

    def _open(self, wanted: frozenset[str], *, repeated: bool) -> None:
        """Begin the next training step, or begin the current step again if `repeated` is True."""
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
        forwards.paused = self._rests  # forward passes are ignored until a step is measured
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
