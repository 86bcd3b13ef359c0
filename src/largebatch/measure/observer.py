"""Measures a training loop that it does not drive: the user calls backward, clips and steps.

Parts are counted by the gradients that each parameter gets. The batch's gradient is looked at when
a backward ends, after DistributedDataParallel has reduced it and before the user clips it; torch
calls back there by a private interface, which only this file uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.autograd.variable import Variable
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError, MicroBatchMissed, NoVariance
from largebatch.core.measurement import Reading
from largebatch.measure.estimate import Parts
from largebatch.measure.meter import LOSS, Meter
from largebatch.measure.squares import squared_norm
from largebatch.measure.statistics import BATCH, Totals
from largebatch.measure.taps import LeafHooks

LEFT_OVER = "left over"


class Observer:
    """A meter for somebody else's loop.

    Mutable: holds what the step in hand has shown so far.

    Args:
        meter: with `LeafHooks` as its tap.
        batch_size: samples of a whole step over all ranks.
        micro_batches: backward calls a step on each rank; None takes what the first step shows.

    Raises:
        ValueError: another tap, which would have to stand around each backward.
    """

    def __init__(self, meter: Meter, *, batch_size: int, micro_batches: int | None = None) -> None:
        if not isinstance(meter.tap, LeafHooks):
            raise ValueError(
                f"{type(meter.tap).__name__} must stand around each backward, which only "
                "lb.Controller does. Use meter=lb.Meter(model) here."
            )
        self.meter, self.tap = meter, meter.tap
        self.batch_size = batch_size
        self._given = micro_batches
        self._expected = micro_batches  # if not given, as many as in the first step
        self._see = self._on_gradient
        self._knows_variance = False

    @property
    def micro_batches(self) -> int | None:
        """Return the backward calls of a step on each rank, as given or as in the first step."""
        return self._expected

    def bind(self, optimizer: Optimizer) -> None:
        """Set once whose parameters to measure."""
        self.meter.bind(optimizer, also=(LEFT_OVER,))
        self.meter.part_source.number_backwards(torch._C._current_graph_task_id)
        self._batch_names = {BATCH}
        for statistic in self.meter.statistics:
            self._batch_names |= set(statistic.of_batch)

    def open(self, wanted: frozenset[str]) -> None:
        """Begin a step in which these statistics are wanted."""
        self.meter.open(wanted)
        self._wanted = wanted
        self._unfinished: set[int] = set()
        self._sizes: list[float] = []
        self._losses = 0
        self.tap.reset()
        self._watching = bool(self.meter.active)
        if self._watching:
            self.tap.begin(self._see)
        else:
            self.tap.rest()

    def size(self, samples: int) -> None:
        """Set the samples of one micro-batch, once for each backward of the step."""
        self._sizes.append(samples)

    def loss(self, loss: Tensor) -> None:
        """Add the mean loss of one micro-batch."""
        self.meter.sums.add(LOSS, loss.detach())
        self._losses += 1

    def close(self, *, digest: int = 0, loss_scale: float = 1.0) -> Reading:
        """Combine the parts over the ranks: one collective, one host sync.

        After an error the next step starts afresh.

        Args:
            digest: of what must be the same on all ranks.
            loss_scale: what the losses were multiplied with, as by a gradient scaler.

        Raises:
            MicroBatchMissed: not as many backward calls since the last step as were given, or
                gradients that were not cleared.
            NoVariance: one part in each step so far, of which no variance can be known.
            LargeBatchError: parameters that got different numbers of gradients.
        """
        try:
            return self._close(digest=digest, unscale=loss_scale**-2)
        except LargeBatchError:
            self.open(self._wanted)
            raise

    def _close(self, *, digest: int, unscale: float) -> Reading:
        parts, counts = self._count(), self.meter.part_source.counts
        sizes = self._sizes or counts.rows or [self._size_of_part(parts)] * parts
        counts.check_backwards(parts, sizes=self._sizes)
        if len(sizes) != parts:
            raise MicroBatchMissed(
                f"control.micro_batch was called {len(sizes)} times, but {parts} backward calls "
                "ran. Call control.micro_batch(len(x)) once for each."
            )
        numbers = {
            "parts": parts, "samples": sum(sizes), "per sample": sum(1.0 / n for n in sizes),
            "losses": self._losses, **counts.numbers(sizes),
        }  # fmt: skip
        if not self._watching:
            self.meter.close_batch()  # perhaps clipped by now: it only shows whether it is finite
        sums = self.meter.reduce(numbers, digest=digest)
        if not self._watching:
            totals = self._totals(sums, unscale=unscale)
            reading = self.meter.read(totals, losses=sums["losses"])
            return replace(reading, batch_sqnorm=None)
        _check_cleared(sums[LEFT_OVER])
        self._check_samples(sums["samples"])
        totals = self._totals(sums, unscale=unscale)
        self._check_variance(totals)
        return self.meter.read(totals, losses=sums["losses"])

    def detach(self) -> None:
        """Take every hook off the model."""
        self.tap.rest()
        self.meter.part_source.rest()

    def _on_gradient(self, index: int, gradient: Tensor) -> None:
        task = torch._C._current_graph_task_id()  # a reentrant checkpoint's is another
        if task not in self._unfinished:
            self._unfinished.add(task)
            Variable._execution_engine.queue_callback(partial(self._when_backward_ends, task))
        before = self.meter.parameters.tensors[index].grad
        if before is not None and self.tap.counts[index] == 1:
            self.meter.sums.add(LEFT_OVER, squared_norm(before))
        see = self.meter.see
        if see is not None:
            see(index, gradient)

    def _when_backward_ends(self, task: int) -> None:
        # Queued once more, it runs after the callback in which DDP finishes its reduction.
        Variable._execution_engine.queue_callback(partial(self._end_backward, task))

    def _end_backward(self, task: int) -> None:
        self._unfinished.discard(task)
        self.meter.close_part(coefficient=1.0, task=task)
        if not self._unfinished:
            self.meter.part_source.begin()  # drops what a user's own torch.autograd.grad has shown
        if self._given is not None and max(self.tap.counts) < self._given:
            return  # more backward calls follow, so the batch's gradient is not complete
        self.meter.sums.drop(self._batch_names & self.meter.sums.names)
        self.meter.close_batch()

    def _count(self) -> int:
        if not self._watching:
            return len(self._sizes) or self._expected or 1
        counts = self.tap.counts
        parts = max(counts)
        self.tap.check_nodes()
        if self._unfinished:
            raise LargeBatchError(
                "A backward of this step failed half way, so its micro-batch cannot be told from "
                "the others. Clear its gradients, optimizer.zero_grad(); the next step is measured "
                "afresh."
            )
        if parts == 0:
            raise MicroBatchMissed(
                "optimizer.step() came without a backward since the last one. If gradients come by "
                "other ways than loss.backward(), their parts cannot be seen."
            )
        given, expected = self._given, self._expected
        if expected is not None and parts > expected and (given is not None or not self._sizes):
            limit = "in the first one" if given is None else f"micro_batches={given} allows"
            self._refuse(counts, f"more than {limit}")
        if given is not None and parts < given:
            raise MicroBatchMissed(
                f"optimizer.step() came after {parts} of {given} micro-batches. Where steps "
                "differ in their number, leave it out: lb.attach(..., batch_size=512)."
            )
        if given is None and any(0 < count < parts for count in counts):
            self._refuse(counts, "but others fewer, so the micro-batches cannot be told apart")
        if self._expected is None:
            self._expected = parts
        return parts

    def _refuse(self, counts: Sequence[int], what: str) -> None:
        name = self.meter.parameters.names[counts.index(max(counts))]
        raise LargeBatchError(
            f"{name} got {max(counts)} gradients in this step, {what}. Say how many backward calls "
            "a step makes on each rank, lb.attach(..., micro_batches=4), one for each micro-batch "
            "(add several losses up before), and avoid checkpoint(use_reentrant=True). After a "
            "pass whose optimizer.step() was skipped or whose backward was broken off, call "
            "control.advance()."
        )

    def _size_of_part(self, parts: int) -> float:
        return self.batch_size / (self.meter.rank_count * (self._expected or parts))

    def _totals(self, sums: dict[str, float], *, unscale: float) -> Totals:
        counts, ranks = self.meter.part_source.counts, self.meter.rank_count
        backwards = round(sums["parts"])
        count, weight_per_sample = counts.weigh(sums)
        return Totals(
            sums=sums,
            parts=Parts(
                count=count,
                samples=sums["samples"],
                units=sums["samples"],
                weight=backwards,
                weight_per_unit=weight_per_sample,
                squared_weight_per_unit=sums["per sample"],
                source=counts.label(ranks=ranks, parts=backwards),
            ),
            part_factor=(backwards / ranks) ** 2 * unscale,
            batch_factor=unscale,
        )

    def _check_variance(self, totals: Totals) -> None:
        if totals.parts.count > 1:
            self._knows_variance = True  # so a later step of one part is only a short one
        if self._knows_variance:
            return
        cause = self.meter.part_source.counts.missing_variance(self.meter.active)
        if cause is not None:
            raise NoVariance(cause)

    def _check_samples(self, samples: float) -> None:
        """A step may have fewer samples than were given, as an epoch's last one does."""
        if samples < self.batch_size and self._knows_variance:
            return
        self.meter.part_source.counts.check_batch(samples, batch_size=self.batch_size)


def _check_cleared(left_over: float) -> None:
    if not left_over > 0.0:  # NaN is for the reading to tell
        return
    raise MicroBatchMissed(
        "There was a gradient already when the step's first one came, so the optimizer would get "
        "their sum. Call optimizer.zero_grad() after each optimizer.step()."
    )
