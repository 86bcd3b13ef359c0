"""One optimizer step's micro-batches on one rank, each to be seen exactly once."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from largebatch.act.planned_step import PlannedStep
from largebatch.core.errors import LargeBatchError, MicroBatchMissed


class MicroBatches(Iterable[Any]):
    """The micro-batches of one optimizer step: iterate it once and pass each loss to
    `control.backward`.

    While it is iterated, DistributedDataParallel synchronises in the last micro-batch only.

    Mutable: knows which micro-batch is in hand.

    Args:
        planned: what the loader gives this rank.
        replica: what must be kept from synchronising; None on a single process.
        quiet: whether even the last micro-batch must not synchronise.

    Attributes:
        batch_size: samples planned for the step, over all ranks.
        accumulation: micro-batches on this rank.
        size: samples in the micro-batch in hand.
    """

    def __init__(
        self, planned: PlannedStep, *, replica: DistributedDataParallel | None, quiet: bool
    ) -> None:
        self.batch_size = planned.batch_size
        self.accumulation = planned.accumulation
        self.size = 0
        self._planned = planned
        self._replica = replica
        self._quiet = quiet
        unsynchronised = quiet or planned.accumulation > 1
        if replica is not None and replica.static_graph and unsynchronised:
            raise LargeBatchError(
                "DistributedDataParallel(static_graph=True) fails in torch when its first backward "
                "is not synchronised, as several micro-batches per step (and lb.measure.Detached, "
                "lb.measure.Flat) need. Leave it out: DistributedDataParallel(model)."
            )
        self._done = 0
        self._waiting = False
        self._micro_batches = self._iterate()

    def __iter__(self) -> Iterator[Any]:
        return self._micro_batches

    @property
    def last(self) -> bool:
        """Whether the micro-batch in hand is this rank's last one of the step."""
        return self._done == self.accumulation - 1

    def take(self) -> bool:
        """Notes that the micro-batch in hand has its backward; whether it is the last one.

        Raises:
            MicroBatchMissed: none is in hand, or it had its backward already.
        """
        if not self._waiting:
            raise MicroBatchMissed(
                "control.backward was called twice for one micro-batch, or outside the loop over "
                "the step. Add the losses up, control.backward(loss_a + loss_b), inside "
                "for x, y in batch: ..."
            )
        self._waiting = False
        self._done += 1
        return self._done == self.accumulation

    def check_complete(self) -> None:
        """Checks that each micro-batch had its backward.

        Raises:
            MicroBatchMissed: some did not.
        """
        if self._done != self.accumulation:
            raise MicroBatchMissed(
                f"control.step() came after {self._done} of {self.accumulation} micro-batches, so "
                "the gradient is not that of the batch. Iterate the whole step and call "
                "control.backward(loss) for each: for x, y in batch: ..."
            )

    def close(self) -> None:
        """Leaves the loop over the micro-batches and restores the model's synchronisation."""
        self._micro_batches.close()

    def _iterate(self) -> Generator[Any, None, None]:
        for at, (micro_batch, size) in enumerate(self._planned):
            self.size, self._waiting = size, True
            silent = self._quiet or at < self.accumulation - 1
            if self._replica is not None and silent:
                with self._replica.no_sync():
                    yield micro_batch
            else:
                yield micro_batch
            if self._waiting:
                raise MicroBatchMissed(
                    f"Micro-batch {at + 1} of {self.accumulation} was passed over: the next one "
                    "was asked for before control.backward(loss). Take them one by one, without "
                    "list(batch) or a prefetcher around it; move them to the device in the loop."
                )


SUM = 2
"""How torch's losses save `reduction="sum"`."""


def check_loss(loss: Tensor, *, samples: int) -> None:
    """Refuses what cannot be the mean loss of a micro-batch of so many samples.

    A sum is known by torch's own losses alone: one that is written out, `losses.sum()`, may be a
    mean whose weights were multiplied in before. `lb.check` tells it by repeating samples.

    Raises:
        ValueError: no scalar, one without a graph, or a sum.
    """
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise ValueError(
            "control.backward takes the loss itself, with the graph that made it: no "
            "loss.item(), no loss.detach(), no torch.no_grad() around the model. "
            "control.backward(loss_fn(model(x), y))"
        )
    if loss.dim() != 0:
        raise ValueError(
            f"The loss has the shape {tuple(loss.shape)}; control.backward takes the mean over "
            "the micro-batch: control.backward(loss.mean())."
        )
    if samples > 1 and getattr(loss.grad_fn, "_saved_reduction", None) == SUM:
        raise ValueError(
            "The loss is a sum (reduction='sum'), which would make a larger micro-batch a larger "
            "step, too. Give the mean, control.backward(loss / len(x)), and multiply the learning "
            "rate by the micro-batch that it was tuned with."
        )


def weight_of(weight: float | Tensor | None, *, samples: int) -> float:
    """What a micro-batch counts: the weight given, or its samples.

    Raises:
        ValueError: a weight that is not finite and above 0.
    """
    weight = samples if weight is None else float(weight)
    if not 0.0 < weight < math.inf:
        raise ValueError(
            f"A micro-batch's weight is finite and above 0; got {weight!r}. One in which "
            "nothing counts has no mean loss; let it count for next to nothing: "
            "control.backward(0.0 * model(x).sum(), weight=1e-6)."
        )
    return weight


def smaller(samples: int) -> str:
    """What to do when a micro-batch of so many samples is too large for the memory."""
    half = max(samples // 2, 1)
    return (
        f"A micro-batch of {samples} samples was too large for the memory. Cut the batch into "
        f"smaller ones, which are accumulated: lb.BatchLoader(dataset, batch_size=512, "
        f'max_micro_batch_size={half}), or "auto" to find the largest that fits.'
    )
