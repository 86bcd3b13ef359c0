"""Measures a training loop that it does not drive: the user calls backward, clips and steps.

`StepRecorder` notes each backward. When the optimizer is about to step, the observer groups the
backward calls into parts, enters the samples and weights that the user passed, lets the ranks add
up, and checks the result before a weight moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError, MicroBatchMissed, NoVariance
from largebatch.core.measurement import Reading
from largebatch.measure import first_step, hand_reduced, one_backward
from largebatch.measure.backwards import Group, is_plain
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.examples_trial import SeenStep
from largebatch.measure.first_sizes import FirstSizes
from largebatch.measure.forwards import Samples
from largebatch.measure.meter import Meter
from largebatch.measure.shares import equal_samples, missing_weights, parts_of
from largebatch.measure.statistics import Totals
from largebatch.measure.step_parts import StepParts
from largebatch.measure.step_recorder import LEFT_OVER, StepRecorder
from largebatch.measure.taps import LeafHooks

FINAL = "final"
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
        self._samples_of, self._reduction = samples, reduction
        self._given = micro_batches
        self.skipped: Callable[[], bool] | None = None
        self._knows_variance = False
        self._first = True
        self._of_parts: Sequence[float] = ()
        self._needs_links = False
        self._links = True  # whether outputs report the backward that reaches them
        self._chooses, self._looks_only = chooses and meter.rank_count == 1, looks_only
        self._next: Meter | None = None
        self._by_examples = False  # whether single examples were chosen for the coming steps
        self.schedule = one_backward.MeasuredSteps()
        self._opened = 0
        self._reopened = False
        self._rests = False  # this step and the last one measure nothing
        self.refusals: Sequence[str] = ()
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

    @property
    def micro_batches(self) -> int | None:
        """Return the micro-batches of a step on each rank, as given or as in the first step."""
        return self._parts.expected

    def bind(self, optimizer: Optimizer) -> None:
        """Set once whose parameters to measure."""
        self._optimizer = optimizer
        self._bind_meter()
        self._step.bind(optimizer)
        self._step.skipped = lambda: self.skipped is not None and self.skipped()
        self._step.forwards.marks = self.meter.rank_count > 1

    def open(self, wanted: frozenset[str]) -> None:
        """Begin a step in which these statistics are wanted."""
        self._wanted = wanted
        if self._reopened:  # after an error, and no step came since
            self._opened -= 1
            self._reopened = False
        if self._next is not None:
            self._take(self._next)
        self._place = self.schedule.position(self._opened)
        due = self._place is not None
        self._opened += 1
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
        if self._looks_only and not self._first:
            forwards.link(self._links and not self._rests)
        may_choose = self._chooses and self._first and self._given in (None, 1)
        self._step.forwards.keeps = may_choose and self._step.watching

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
        self._opened -= 1  # a step that is measured stays so
        self._reopened = False
        self.open(self._wanted)
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
            return self._close(digest=digest, unscale=loss_scale**-2)
        except LargeBatchError as error:
            self._opened -= 1
            if self._by_examples and self._looks_only and _of_examples(error):
                self._replace(one_backward.pairs_of_steps(self.meter.model, [str(error)]))
            if self._first:  # the loop may look different after its error
                self._parts.forget()
            self.open(self._wanted)
            self._reopened = True
            raise

    def detach(self) -> None:
        """Take every hook off the model."""
        self._step.detach()
        self.meter.part_source.rest()

    def _close(self, *, digest: int, unscale: float) -> Reading:
        meter = self.meter
        numbers, groups = self._numbers()
        sums = meter.reduce(numbers, digest=digest, problem=self._step.problem)
        self._check_weights(sums)
        if self._first and sums["assumed"] == sums["parts"]:
            equal_samples(sums, batch_size=self.batch_size)
        if not self._step.watching:
            totals = self._totals(sums, held=1.0 / meter.rank_count, unscale=unscale)
            reading = meter.read(totals, losses=sums["losses"])
            return replace(reading, batch_sqnorm=None)
        self._check_left_over(sums)
        held = self._held(sums)
        totals = self._totals(sums, held=held or 1.0 / meter.rank_count, unscale=unscale)
        self._check(sums, totals, groups)
        self._settle(groups, parts=round(sums["parts"]))
        reading = meter.read(totals, losses=sums["losses"])
        if held is None or sums["unclear"]:
            unknown: dict[str, Any] = dict.fromkeys(statistic.name for statistic in meter.active)
            norm = None if held is None else reading.batch_sqnorm
            return replace(reading, batch_sqnorm=norm, **unknown)
        return reading if self._place == self.schedule.span - 1 else replace(reading, moments=None)

    def _settle(self, groups: Sequence[Group], *, parts: int) -> None:
        """Prepare for the next step what this one has shown."""
        forwards = self._step.forwards
        if self._first:
            self._parts.expect(parts)
        self._first = forwards.keeps = forwards.marks = False
        self._step.dropped = ""
        by_rows = self._parts.by_rows and not forwards.traced
        forwards.sized = self._samples_of is not None or by_rows
        self._needs_links = self._needs_links or self._parts.unclear
        plain = is_plain(groups, forwards=forwards.in_step)
        self._links = by_rows or self._needs_links or not plain
        forwards.link(self._links)

    def _numbers(self) -> tuple[dict[str, float], Sequence[Group]]:
        """Return this rank's numbers of the step; an exception becomes a problem of the step."""
        meter = self.meter
        shares, groups = self._parts.shares()
        numbers = shares.numbers()
        first = self._first and self._step.watching
        numbers |= {"losses": 0.0, "unclear": float(self._parts.unclear)}
        numbers["assumed"] = self._parts.assumed * numbers["parts"]
        if first:
            numbers |= first_step.facts(FirstSizes(), first=None, weights=None)
        try:
            if first:
                numbers |= self._facts(groups)
            if self._step.by_hand is not None:
                meter.close_batch()
                if self._step.watching:
                    self._step.by_hand.compare(meter.sums)
            elif not self._step.watching:
                meter.close_batch()  # perhaps clipped by now: it only shows whether it is finite
            elif self._step.accumulated.changed:
                meter.sums.add(FINAL, *meter.squared_gradients())
            numbers["losses"] = self._parts.weigh(shares, groups)
        except Exception as error:  # the other ranks wait for this one
            self._step.fail_by(error)
        return numbers, groups

    def _facts(self, groups: Sequence[Group]) -> dict[str, float]:
        sizes = self._parts.sizes(groups)
        self._of_parts = sizes.of_parts
        return first_step.facts(
            sizes,
            first=self._step.forwards.first,
            weights=self.meter.parameters.tensors if self.meter.replicated else None,
        )

    def _check_left_over(self, sums: dict[str, float]) -> None:
        if sums[LEFT_OVER] > 0.0:  # NaN is for the reading to tell
            error = MicroBatchMissed(_left_over(self._step.dropped))
            if self.meter.rank_count > 1:  # another rank may know the call that dropped them
                self.meter.ranks.raise_together(error if self._step.dropped else None)
            raise error

    def _check(self, sums: dict[str, float], totals: Totals, groups: Sequence[Group]) -> None:
        self._check_samples(sums["samples"])
        self._check_variance(totals, groups)
        if self._first and not (self._next and self._by_examples):
            first_step.check_first_step(
                sums,
                batch_size=self.batch_size,
                ranks=self.meter.rank_count,
                replicated=self.meter.replicated,
                alike=self._step.by_hand is not None and self._step.by_hand.reduced_early(sums),
                of_parts=self._of_parts,
            )

    def _check_weights(self, sums: dict[str, float]) -> None:
        told, parts = round(sums["weighted"]), round(sums["parts"])
        if told not in (0, parts):
            raise MicroBatchMissed(missing_weights(told=told, parts=parts))

    def _held(self, sums: dict[str, float]) -> float | None:
        """Return how often the batch's gradient holds the sum of the ranks', if that is known."""
        by_hand = self._step.by_hand
        return 1.0 / self.meter.rank_count if by_hand is None else by_hand.factor(sums)

    def _totals(self, sums: dict[str, float], *, held: float, unscale: float) -> Totals:
        ranks = self.meter.rank_count
        label = self.meter.part_source.counts.label(ranks=ranks, parts=round(sums["parts"]))
        parts = parts_of(sums, source=label)
        share = 1.0 if self._reduction == "sum" else 1.0 / ranks
        return Totals(
            sums=sums,
            parts=parts,
            part_factor=(share * parts.weight) ** 2 * unscale,
            batch_factor=(share / held) ** 2 * unscale,
        )

    def _check_variance(self, totals: Totals, groups: Sequence[Group]) -> None:
        if totals.parts.count > 1:
            self._knows_variance = True  # so a later step of one part is only a short one
        if self._knows_variance:
            return
        cause = self.meter.part_source.counts.missing_variance(self.meter.active)
        if cause is None:
            return
        if self._chooses and self._next is None:
            self._choose(groups)
        if self._next is None:
            raise NoVariance(one_backward.no_variance(self.refusals) if self.refusals else cause)

    def _choose(self, groups: Sequence[Group]) -> None:
        forwards, gradients = self._step.forwards, self._step.gradients
        seen = SeenStep(
            forwards=forwards.kept,
            complete=gradients is not None and len(forwards.kept) == forwards.in_step,
            gradients=gradients or {},
            several=max(map(len, groups), default=0),
        )
        choice = one_backward.choose_meter(
            self.meter.model,
            self._optimizer,
            seen,
            batch_size=0 if self._parts.sizes_known else self.batch_size,
            looks_only=self._looks_only,
        )
        self._replace(choice)
        self._parts.by_rows = self._next is not None and self._step.rows == self.batch_size

    def _replace(self, choice: one_backward.Choice) -> None:
        self._next, self.refusals = choice.meter, choice.refusals
        self.schedule, self._by_examples = choice.schedule, choice.by_examples

    def _bind_meter(self) -> None:
        by_hand = hand_reduced.NAMES if self.meter.replicated else ()
        self.meter.bind(self._optimizer, also=(LEFT_OVER, FINAL, *by_hand))
        self.meter.part_source.number_backwards(torch._C._current_graph_task_id)

    def _take(self, meter: Meter) -> None:
        """Measure with another meter from this step on."""
        self.meter.open(frozenset())
        self.meter, self._next, self._chooses = meter, None, False
        self._knows_variance = True  # a later step of fewer samples is only a short one
        self._bind_meter()
        self._step.use(meter)
        self._opened = 0

    def _check_samples(self, samples: float) -> None:
        """A step may have fewer samples than were given, as an epoch's last one does."""
        if samples < self.batch_size and self._knows_variance:
            return
        self.meter.part_source.counts.check_batch(samples, batch_size=self.batch_size)


def _of_examples(error: LargeBatchError) -> bool:
    """Return whether an error says that single examples cannot be measured in this loop."""
    failed = error.__cause__ is not None  # an exception of another kind inside the measuring
    return isinstance(error, ExamplesRefused) or failed


def _left_over(dropped: str) -> str:
    if dropped:
        return (
            f"{dropped} dropped the backward calls before it, but their gradients are still there, "
            "so the optimizer would get them, too. Call control.advance() after optimizer.step() "
            "alone (with accelerate: if accelerator.sync_gradients: control.advance(scheduler)), "
            "or clear the gradients that you drop: optimizer.zero_grad()."
        )
    return (
        "There was a gradient already when the step's first one came, so the optimizer would get "
        "their sum. Call optimizer.zero_grad() after each optimizer.step()."
    )
