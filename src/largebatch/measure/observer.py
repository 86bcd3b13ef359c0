"""Measures a training loop that it does not drive: the user calls backward, clips and steps.

`StepRecorder` notes each backward. When the optimizer is about to step, the observer groups the
backward calls into parts, enters what the user told of them, lets the ranks add up, and checks the
result before a weight moves.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError, MicroBatchMissed, NoVariance
from largebatch.core.measurement import Reading
from largebatch.measure import first_step, hand_reduced, one_backward
from largebatch.measure.backwards import Group, counts_decide, groups_of, is_plain, needs_sum
from largebatch.measure.coordinates import CoordinateNoiseScale
from largebatch.measure.forwards import Samples
from largebatch.measure.meter import LOSS, Meter
from largebatch.measure.shares import Shares, Told, missing_weights, parts_of, shares_of, told_of
from largebatch.measure.statistics import Totals
from largebatch.measure.step_recorder import LEFT_OVER, StepRecorder
from largebatch.measure.taps import LeafHooks

FINAL = "final"
REDUCTIONS = ("mean", "sum")

SEVERAL = (
    "{name} got {count} gradients from one forward pass of the model, as if a micro-batch had "
    "several losses with a backward call each. Their sum was not formed in this step. Add the "
    "losses up, (loss_1 + loss_2).backward(), or put the forward and backward calls of each "
    "micro-batch into a block: with control.part(): ..."
)

NO_FORWARD = (
    "lb.attach(..., samples=...) was given, but no forward pass of the model was seen for a "
    "micro-batch, as when its submodules are called directly. Tell the samples in the loop: "
    "control.micro_batch(len(x))."
)
RETURNED_0 = (
    "The function passed as samples= returned 0 for all forward passes of a micro-batch, which has "
    "at least one sample: lb.attach(..., samples=lambda args, kwargs: len(args[0]))."
)


class Observer:
    """A meter for somebody else's loop.

    Mutable: holds what the step in hand has shown so far.

    Args:
        meter: with `LeafHooks` as its tap.
        batch_size: samples of a whole step over all ranks.
        micro_batches: backward calls a step on each rank; None takes what the first step shows.
        samples: (args, kwargs) of the model's forward pass -> samples in it; None takes equal
            shares of the batch, unless the user tells the samples of each micro-batch.
        reduction: "mean" if the loss of each rank is a mean over its own samples, as usual; "sum"
            if it is divided by the samples, or tokens, of all ranks.
        chooses: whether another meter may replace `meter` if the loop makes one backward per step
            on one process; see `one_backward`.
        looks_only: whether no decision depends on the measurement.

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
        self._expected = micro_batches  # if not given, as many as in the first step
        self._knows_variance = self._told_unequal = False
        self._first = True
        self._chooses, self._looks_only = chooses and meter.rank_count == 1, looks_only
        self._next: Meter | None = None
        self.schedule = one_backward.MeasuredSteps()
        self._opened = 0
        self._told: list[Told] = []
        self._losses: list[tuple[int, int]] = []
        self._rests = False  # this step and the last one measure nothing
        self.refusals: Sequence[str] = ()
        self._step = StepRecorder(
            meter,
            meter.tap,
            samples=samples,
            micro_batches=micro_batches,
            looks_only=looks_only,
        )

    @property
    def micro_batches(self) -> int | None:
        """Return the micro-batches of a step on each rank, as given or as in the first step."""
        return self._expected

    def bind(self, optimizer: Optimizer) -> None:
        """Set once whose parameters to measure."""
        self._optimizer = optimizer
        self._bind_meter()
        self._step.bind(optimizer)
        self._step.forwards.keeps = self._chooses and self._given in (None, 1)

    def open(self, wanted: frozenset[str]) -> None:
        """Begin a step in which these statistics are wanted."""
        self._wanted = wanted
        if self._next is not None:
            self._take(self._next)
        self._place = self.schedule.position(self._opened)
        due = self._place is not None
        self._opened += 1
        if self._looks_only and not due and self._rests:
            self._told.clear()
            self._losses.clear()
            self._step.forwards.open()
            return
        self._rests = self._looks_only and not due
        self.meter.open(wanted if due else frozenset())
        self._closed = 0
        self._told, self._losses = [], []
        self._step.open()

    @property
    def measures(self) -> bool:
        """Return whether the step in hand is measured."""
        return self._step.watching

    @property
    def in_step(self) -> bool:
        """Return whether the step in hand has seen anything that a drop would lose."""
        return bool(self._step.roots or self._step.running or self._told or self._losses)

    @property
    def saw_more(self) -> bool:
        """Return whether a backward ran after the step in hand was closed."""
        return len(self._step.roots) != self._closed

    @property
    def losses(self) -> int:
        """Return how many losses were passed in the step in hand."""
        return len(self._losses)

    def drop(self, *, by: str) -> None:
        """Begin the step afresh; `by` is the call that asked for it."""
        dropped = by if self._step.roots else self._step.dropped
        self._opened -= 1  # a step that is measured stays so
        self.open(self._wanted)
        self._step.dropped = dropped

    def size(self, samples: float | Tensor, *, weight: float | Tensor | None = None) -> None:
        """Set the samples, and the weight, of one micro-batch, once for each of the step."""
        self._told.append(self._told_of(samples, weight))

    def loss(self, loss: Tensor) -> None:
        """Add the mean loss of one micro-batch."""
        sums = self.meter.sums
        start = sums.mark()
        sums.add(LOSS, loss.detach())
        self._losses.append((start, sums.mark()))

    @contextmanager
    def part(
        self, *, samples: float | Tensor | None, weight: float | Tensor | None
    ) -> Iterator[None]:
        """Take all backward calls within the context for one part."""
        told = self._told_of(samples, weight)
        try:
            with self._step.part():
                yield
        except BaseException:
            self.drop(by="an exception inside control.part()")
            raise
        if samples is not None or weight is not None:
            self._told.append(told)

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
        try:
            return self._close(digest=digest, unscale=loss_scale**-2)
        except LargeBatchError:
            self._opened -= 1
            if self._first:  # the loop may look different after its error
                self._expected = self._given
            self.open(self._wanted)
            raise

    def detach(self) -> None:
        """Take every hook off the model."""
        self._step.detach()
        self.meter.part_source.rest()

    def _told_of(self, samples: float | Tensor | None, weight: float | Tensor | None) -> Told:
        """Return what was told; several ranks hear of a mistake together, at the step's end."""
        try:
            return told_of(samples, weight)
        except ValueError as error:
            if self.meter.rank_count == 1:
                raise
            self._step.fail(LargeBatchError(str(error)))
            return Told()

    def _close(self, *, digest: int, unscale: float) -> Reading:
        meter = self.meter
        shares, groups = self._shares()
        facts = self._facts(groups)
        if self._step.by_hand is not None:
            meter.close_batch()
            self._step.by_hand.compare(meter.sums)
        elif not self._step.watching:
            meter.close_batch()  # perhaps clipped by now: it only shows whether it is finite
        elif self._step.accumulated.changed:
            meter.sums.add(FINAL, *meter.squared_gradients())
        numbers = {**shares.numbers(), "losses": self._weigh(shares, groups), **facts}
        sums = meter.reduce(numbers, digest=digest, problem=self._step.problem)
        self._check_weights(sums)
        totals = self._totals(sums, unscale=unscale)
        if not self._step.watching:
            reading = meter.read(totals, losses=sums["losses"])
            return replace(reading, batch_sqnorm=None)
        self._check(sums, totals)
        self._first = self._step.forwards.keeps = False
        self._step.dropped = ""
        self._step.forwards.sized = self._samples_of is not None
        forwards = self._step.forwards
        forwards.link(not is_plain(groups, forwards=forwards.in_step))
        reading = meter.read(totals, losses=sums["losses"])
        return reading if self._place == self.schedule.span - 1 else replace(reading, moments=None)

    def _shares(self) -> tuple[Shares, list[Group]]:
        """Return the parts of this rank; after a problem, some that let the ranks talk about it."""
        try:
            groups = self._groups()
            usual = self._usual_sizes(groups)
            pieces = self.meter.part_source.counts.groups(len(usual))
            shares = shares_of(self._told, usual=usual, groups=pieces)
            self._warn_of_unequal(shares)
            return shares, groups
        except LargeBatchError as error:
            self._step.fail(error)
            return Shares(samples=[1.0], weights=[], groups=[1]), []

    def _groups(self) -> list[Group]:
        self._step.square_open_part()
        if not self._step.watching:
            return []
        counts, roots = self.tap.counts, self._step.roots
        self.tap.check_nodes()
        if self._step.running:
            raise LargeBatchError(
                "A backward of this step failed half way, so its micro-batch cannot be told from "
                "the others. Clear its gradients, optimizer.zero_grad(); the next step is measured "
                "afresh."
            )
        if not roots:
            raise MicroBatchMissed(
                _no_backward(self._step.dropped, forwards=self._step.forwards.in_step)
            )
        forwards = self._step.forwards.in_step
        groups = groups_of(roots, forwards=forwards)
        if counts_decide(roots, forwards=forwards):
            self._check_counts(counts, parts=max(counts))
        parts = len(groups)
        self._check_number(counts, parts=parts)
        self._check_sums(groups)
        if self._expected is None:
            self._expected = parts
        return groups

    def _check_counts(self, counts: Sequence[int], *, parts: int) -> None:
        """Where gradients alone are counted, each parameter must have as many, unless told."""
        if self._given is None and any(0 < count < parts for count in counts):
            self._refuse(counts, "but others fewer, so the micro-batches cannot be told apart")

    def _check_number(self, counts: Sequence[int], *, parts: int) -> None:
        given, expected = self._given, self._expected
        if expected is not None and parts > expected and (given is not None or not self._told):
            limit = "in the first one" if given is None else f"micro_batches={given} allows"
            self._refuse(counts, f"more than {limit}")
        if given is not None and parts < given:
            raise MicroBatchMissed(
                f"optimizer.step() came after {parts} of {given} micro-batches. Where steps "
                "differ in their number, leave it out: lb.attach(..., batch_size=512)."
            )

    def _check_sums(self, groups: Sequence[Group]) -> None:
        several = next((group for group in groups if needs_sum(group)), None)
        if several is None:
            return
        indices = [index for backward in several for index in backward.indices]
        most = max(set(indices), key=indices.count)
        name, count = self.meter.parameters.names[most], indices.count(most)
        if not self.meter.part_source.adds_up:
            raise LargeBatchError(
                f"{name} got {count} gradients from one forward pass of the model, and single "
                "examples need all of them in one backward. Add the losses up: "
                "(loss_1 + loss_2).backward()."
            )
        self._step.adds_up = True
        raise LargeBatchError(SEVERAL.format(name=name, count=count))

    def _refuse(self, counts: Sequence[int], what: str) -> None:
        name = self.meter.parameters.names[counts.index(max(counts))]
        raise LargeBatchError(
            f"{name} got {max(counts)} gradients in this step, {what}. Put the forward and "
            "backward calls of each micro-batch into a block, with control.part(): ..., or say how "
            "many micro-batches a step has on each rank, lb.attach(..., micro_batches=4). After a "
            "pass whose optimizer.step() was skipped or whose backward was broken off, call "
            "control.advance()."
        )

    def _usual_sizes(self, groups: Sequence[Group]) -> Sequence[float]:
        parts = len(groups)
        if not self._step.watching:
            parts = len(self._told) or self._expected or 1
        seen = self._step.forwards.samples
        if self._samples_of is not None and not any(one.samples for one in self._told):
            base = self._step.forwards.base
            sizes = [
                sum(seen.get(n, 0.0) for n in _forwards_of(group, base=base)) for group in groups
            ] or [sum(seen.values()) / parts] * parts
            if not all(size > 0 for size in sizes):
                raise LargeBatchError(RETURNED_0 if 0.0 in seen.values() else NO_FORWARD)
            return sizes
        counts = self.meter.part_source.counts
        told = [one.samples for one in self._told if one.samples is not None]
        counts.check_backwards(parts, sizes=told)
        if counts.rows:
            return list(counts.rows)
        each = self.batch_size / (self.meter.rank_count * (self._expected or parts))
        return [each] * parts

    def _warn_of_unequal(self, shares: Shares) -> None:
        known = bool(self._told) or self._samples_of is not None
        if self._told_unequal or shares.weights or len(set(shares.samples)) < 2 or not known:
            return
        self._told_unequal = True
        sizes = ", ".join(f"{size:g}" for size in shares.samples[:8])
        warnings.warn(
            f"The micro-batches of this step have {sizes} samples, and no weight was passed, so "
            "they are taken to enter the loss with equal shares. If each enters with its samples, "
            "as in loss * len(x) / batch_size, pass control.micro_batch(len(x), weight=len(x)); "
            "for equal shares pass weight=1.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _weigh(self, shares: Shares, groups: Sequence[Group]) -> float:
        """Enter the weights, which are known only now; return the weight of the losses."""
        sums, weights = self.meter.sums, shares.weights
        if weights and any(isinstance(one, CoordinateNoiseScale) for one in self.meter.active):
            self._step.fail(
                LargeBatchError(
                    "lb.measure.CoordinateNoiseScale() takes micro-batches with equal weights "
                    "under lb.attach. Leave out weight=, or use lb.Controller."
                )
            )
        for group, weight in zip(groups, weights, strict=False):
            for backward in group:
                sums.scale(backward.start, backward.stop, 1.0 / weight)
        if not (self._told and self._losses):
            return float(len(self._losses))
        if len(self._losses) != len(shares.samples):
            self._step.fail(
                MicroBatchMissed(
                    f"control.loss was called {len(self._losses)} times in a step of "
                    f"{len(shares.samples)} micro-batches. Call it once for each of them."
                )
            )
        each = weights or shares.samples
        for (start, stop), weight in zip(self._losses, each, strict=False):
            sums.scale(start, stop, weight)
        return float(sum(each))

    def _facts(self, groups: Sequence[Group]) -> dict[str, float]:
        if not (self._first and self._step.watching):
            return {}
        seen = self._step.forwards.samples
        linked = {n for group in groups for one in group for n in one.forwards}
        rows = sum(seen.get(n, 0.0) for n in linked) if linked else self._step.forwards.rows
        weights = self.meter.parameters.tensors if self.meter.replicated else None
        return first_step.facts(
            rows=rows,
            first=self._step.forwards.first if self.meter.rank_count > 1 else None,
            weights=weights,
            told=bool(self._told) or self._samples_of is not None,
            hidden=self._step.forwards.traced and self._step.forwards.in_step == self._expected,
        )

    def _check(self, sums: dict[str, float], totals: Totals) -> None:
        if sums[LEFT_OVER] > 0.0:  # NaN is for the reading to tell
            error = MicroBatchMissed(_left_over(self._step.dropped))
            if self.meter.rank_count > 1:  # another rank may know the call that dropped them
                self.meter.ranks.raise_together(error if self._step.dropped else None)
            raise error
        self._check_samples(sums["samples"])
        if self._first:
            first_step.check_first_step(
                sums,
                batch_size=self.batch_size,
                micro_batches=round(sums["parts"] / self.meter.rank_count),
                ranks=self.meter.rank_count,
                replicated=self.meter.replicated,
            )
        self._check_variance(totals)

    def _check_weights(self, sums: dict[str, float]) -> None:
        told, parts = round(sums["weighted"]), round(sums["parts"])
        if told not in (0, parts):
            raise MicroBatchMissed(missing_weights(told=told, parts=parts))

    def _totals(self, sums: dict[str, float], *, unscale: float) -> Totals:
        ranks = self.meter.rank_count
        label = self.meter.part_source.counts.label(ranks=ranks, parts=round(sums["parts"]))
        parts = parts_of(sums, source=label)
        share = 1.0 if self._reduction == "sum" else 1.0 / ranks
        held = 1.0 / ranks
        if self._step.by_hand is not None and self._step.watching:
            held = self._step.by_hand.factor(sums)
        return Totals(
            sums=sums,
            parts=parts,
            part_factor=(share * parts.weight) ** 2 * unscale,
            batch_factor=(share / held) ** 2 * unscale,
        )

    def _check_variance(self, totals: Totals) -> None:
        if totals.parts.count > 1:
            self._knows_variance = True  # so a later step of one part is only a short one
        if self._knows_variance:
            return
        cause = self.meter.part_source.counts.missing_variance(self.meter.active)
        if cause is None:
            return
        if self._chooses and self._next is None:
            choice = one_backward.choose_meter(
                self.meter.model,
                self._optimizer,
                self._step.forwards.inputs,
                looks_only=self._looks_only,
            )
            self._next, self.refusals = choice.meter, choice.refusals
            self.schedule = choice.schedule
        if self._next is None:
            raise NoVariance(cause + one_backward.reasons(self.refusals))

    def _bind_meter(self) -> None:
        by_hand = hand_reduced.NAMES if self.meter.replicated else ()
        self.meter.bind(self._optimizer, also=(LEFT_OVER, FINAL, *by_hand))
        self.meter.part_source.number_backwards(torch._C._current_graph_task_id)

    def _take(self, meter: Meter) -> None:
        """Measure with another meter from this step on."""
        self.meter.open(frozenset())
        self.meter, self._next, self._chooses = meter, None, False
        self._bind_meter()
        self._step.use(meter)
        self._opened = 0

    def _check_samples(self, samples: float) -> None:
        """A step may have fewer samples than were given, as an epoch's last one does."""
        if samples < self.batch_size and self._knows_variance:
            return
        self.meter.part_source.counts.check_batch(samples, batch_size=self.batch_size)


def _forwards_of(group: Group, *, base: int) -> set[int]:
    linked = {number for backward in group for number in backward.forwards}
    return linked or {base + backward.after for backward in group}


def _no_backward(dropped: str, *, forwards: int) -> str:
    if dropped:
        return (
            f"{dropped} dropped the backward calls before it, and none came between it and "
            "optimizer.step(). Call control.advance() after the optimizer.step(), or steps, of "
            "all the backward calls: optimizer.step(); control.advance(scheduler)."
        )
    return (
        f"optimizer.step() came without a backward call since the last step; {forwards} forward "
        "passes were seen. Call loss.backward() first. Gradients that come by other ways cannot be "
        "measured."
    )


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
