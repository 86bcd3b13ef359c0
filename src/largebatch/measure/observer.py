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
        self._told = micro_batches is not None
        self._usual = micro_batches
        self._see = self._on_gradient
        self._knows_variance = False

    @property
    def micro_batches(self) -> int | None:
        """Backward calls of a step on each rank, as told or as the first step showed."""
        return self._usual

    def bind(self, optimizer: Optimizer) -> None:
        """Told once whose parameters to measure."""
        self.meter.bind(optimizer, also=(LEFT_OVER,))
        if self.meter.examples is not None:
            self.meter.examples.task = torch._C._current_graph_task_id
        self._batch_names = {BATCH}
        for statistic in self.meter.statistics:
            self._batch_names |= set(statistic.of_batch)

    def open(self, wanted: frozenset[str]) -> None:
        """A step begins in which these statistics are wanted."""
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
        """The samples of one micro-batch, told once for each backward of the step."""
        self._sizes.append(samples)

    def loss(self, loss: Tensor) -> None:
        """The mean loss of one micro-batch."""
        self.meter.sums.add(LOSS, loss.detach())
        self._losses += 1

    def close(self, *, digest: int = 0, loss_scale: float = 1.0) -> Reading:
        """Combines the parts over the ranks: one collective, one host sync.

        After an error the next step starts afresh.

        Args:
            digest: of what must be the same on all ranks.
            loss_scale: what the losses were multiplied with, as by a gradient scaler.

        Raises:
            MicroBatchMissed: not as many backward calls since the last step as were told, or
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
        parts = self._count()
        sizes = self._sizes or self.meter.rows or [self._size_of_part(parts)] * parts
        self._check_rows(parts)
        if len(sizes) != parts:
            raise MicroBatchMissed(
                f"control.micro_batch was told {len(sizes)} sizes, but {parts} backward calls ran. "
                "Call control.micro_batch(len(x)) once for each."
            )
        numbers = {
            "parts": parts, "samples": sum(sizes), "per sample": sum(1.0 / n for n in sizes),
            "losses": self._losses,
        }  # fmt: skip
        if self.meter.rows:
            numbers["groups"] = sum(self.meter.groups)
            pairs = zip(self.meter.groups, sizes, strict=True)
            numbers["groups per sample"] = sum(groups / n for groups, n in pairs)
        if not self._watching:
            self.meter.close_batch()  # perhaps clipped by now: it only shows whether it is finite
        sums = self.meter.reduce(numbers, digest=digest)
        if not self._watching:
            totals = self._totals(sums, unscale=unscale)
            reading = self.meter.read(totals, losses=sums["losses"])
            return replace(reading, batch_sqnorm=None)
        _check_cleared(sums[LEFT_OVER])
        self._check_examples(sums["samples"])
        totals = self._totals(sums, unscale=unscale)
        self._check_variance(totals)
        return self.meter.read(totals, losses=sums["losses"])

    def detach(self) -> None:
        """Takes every hook off the model."""
        self.tap.rest()
        if self.meter.examples is not None:
            self.meter.examples.rest()

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
        if self.meter.examples is not None and not self._unfinished:
            self.meter.examples.begin()  # forgets what a user's own torch.autograd.grad has shown
        if self._told and self._usual is not None and max(self.tap.counts) < self._usual:
            return  # more backward calls follow, so the batch's gradient is not complete
        self.meter.sums.drop(self._batch_names & self.meter.sums.names)
        self.meter.close_batch()

    def _count(self) -> int:
        if not self._watching:
            return len(self._sizes) or self._usual or 1
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
        if self._usual is not None and parts > self._usual and (self._told or not self._sizes):
            told = f"micro_batches={self._usual} allows" if self._told else "in the first one"
            self._refuse(counts, f"more than {told}")
        if self._told and self._usual is not None and parts < self._usual:
            raise MicroBatchMissed(
                f"optimizer.step() came after {parts} of {self._usual} micro-batches. Where steps "
                "differ in their number, leave it out: lb.attach(..., batch_size=512)."
            )
        if not self._told and any(0 < count < parts for count in counts):
            self._refuse(counts, "but others fewer, so the micro-batches cannot be told apart")
        if self._usual is None:
            self._usual = parts
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
        return self.batch_size / (self.meter.rank_count * (self._usual or parts))

    def _totals(self, sums: dict[str, float], *, unscale: float) -> Totals:
        count, ranks = round(sums["parts"]), self.meter.rank_count
        # with examples: k groups of a backward's n have the weight 1 / k and n / k samples each
        per_sample = sums["per sample"]
        return Totals(
            sums=sums,
            parts=Parts(
                count=round(sums.get("groups", count)),
                samples=sums["samples"],
                units=sums["samples"],
                weight=count,
                weight_per_unit=sums.get("groups per sample", per_sample),
                squared_weight_per_unit=per_sample,
                source=self.meter.source(count),
            ),
            part_factor=(count / ranks) ** 2 * unscale,
            batch_factor=unscale,
        )

    def _check_variance(self, totals: Totals) -> None:
        if totals.parts.count > 1:
            self._knows_variance = True  # so a later step of one part is only a short one
        if self._knows_variance:
            return
        if self.meter.rows:
            raise NoVariance(
                "A step of one example gives one gradient, of which no variance can be known. Take "
                "more examples into a step: DataLoader(dataset, batch_size=64)."
            )
        if any(s.parts for s in self.meter.active):
            raise NoVariance(
                "One backward a step on one process gives one gradient, of which no variance can "
                "be known. Split the batch into two or more micro-batches, run several processes, "
                "take single examples for the parts, meter=lb.Meter(model, "
                "examples=lb.PerExample()), or the rough temporal estimate: "
                "meter=lb.Meter(model, statistics=[lb.TemporalMoments()])."
            )

    def _check_rows(self, parts: int) -> None:
        rows = self.meter.rows
        if rows and len(rows) != parts:
            raise LargeBatchError(
                f"A step of {parts} backward calls had {len(rows)} within each other (reentrant "
                "checkpointing does that), so its examples cannot be told apart. Use "
                "checkpoint(use_reentrant=False)."
            )
        if rows and self._sizes and rows != self._sizes:
            raise LargeBatchError(
                f"control.micro_batch was told {self._sizes} samples, but the model got {rows} "
                "examples. Give the model all of a micro-batch's examples at once, as the first "
                "dimension of its first argument."
            )

    def _check_examples(self, samples: float) -> None:
        """A step may have fewer examples than were told, as an epoch's last one does."""
        short = samples < self.batch_size and self._knows_variance
        if self.meter.rows and samples != self.batch_size and not short:
            raise LargeBatchError(
                f"batch_size={self.batch_size} was told, but the model got {samples:.0f} examples "
                f"in this step. Tell what it gets: lb.attach(..., batch_size={samples:.0f}); the "
                "examples are the first dimension of its first argument."
            )


def _check_cleared(left_over: float) -> None:
    if not left_over > 0.0:  # NaN is for the reading to tell
        return
    raise MicroBatchMissed(
        "There was a gradient already when the step's first one came, so the optimizer would get "
        "their sum. Call optimizer.zero_grad() after each optimizer.step()."
    )
