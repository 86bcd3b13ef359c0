"""Yield one optimizer step's micro-batches on one rank, and check that each is used once."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from largebatch.act.planned_step import PlannedStep
from largebatch.core.errors import LargeBatchError, MicroBatchMissed


class MicroBatches(Iterable[Any]):
    """Yield the micro-batches of one optimizer step; pass the loss of each to `control.backward`.

    Iterate over this object once. During the iteration, DistributedDataParallel synchronizes the
    gradients in the last micro-batch only.

    This class is mutable: it knows which micro-batch is in progress.

    Args:
        planned: Micro-batches that the loader gives this rank.
        replica: DistributedDataParallel wrapper that must not synchronize too early; None on a
            single process.
        quiet: Whether no micro-batch may synchronize the gradients, not even the last one.

    Attributes:
        batch_size: Number of samples planned for the step, over all ranks.
        accumulation: Number of micro-batches of the step on this rank.
        size: Number of samples in the current micro-batch.
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
        unsynchronized = quiet or planned.accumulation > 1
        if replica is not None and replica.static_graph and unsynchronized:
            raise LargeBatchError(
                "DistributedDataParallel(static_graph=True) was given, but torch then raises an "
                "error if the first backward call does not synchronize the gradients. Several "
                "micro-batches per step, lb.measure.Detached and lb.measure.Flat need such a "
                "backward call. Remove static_graph: DistributedDataParallel(model)."
            )
        self._done = 0
        self._waiting = False
        self._micro_batches = self._iterate()

    def __iter__(self) -> Iterator[Any]:
        return self._micro_batches

    @property
    def last(self) -> bool:
        """Whether the current micro-batch is the last one of the step on this rank."""
        return self._done == self.accumulation - 1

    def take(self) -> bool:
        """Record the backward call of the current micro-batch; return whether it is the last
        micro-batch.

        Raises:
            MicroBatchMissed: No micro-batch is in progress, or backward was already called for the
                current micro-batch.
        """
        if not self._waiting:
            raise MicroBatchMissed(
                "control.backward was called twice for one micro-batch, or outside the loop over "
                "the micro-batches. Call control.backward once per micro-batch, with the sum "
                "of the losses, "
                "control.backward(loss_a + loss_b), inside for x, y in batch: ..."
            )
        self._waiting = False
        self._done += 1
        return self._done == self.accumulation

    def check_complete(self) -> None:
        """Check that backward was called for each micro-batch of the step.

        Raises:
            MicroBatchMissed: Backward was not called for some micro-batches.
        """
        if self._done != self.accumulation:
            raise MicroBatchMissed(
                f"control.step() was called after {self._done} of {self.accumulation} "
                "micro-batches, so the gradient is not that of the whole batch. Iterate over all "
                "micro-batches and call control.backward(loss) for each: for x, y in batch: ..."
            )

    def close(self) -> None:
        """End the loop over the micro-batches and restore the model's gradient synchronization."""
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
                    f"Micro-batch {at + 1} of {self.accumulation} had no control.backward(loss) "
                    "before the next micro-batch was requested. Take the micro-batches one by one, "
                    "without list(batch) or a prefetcher, and move each to the device inside the "
                    "loop: for x, y in batch: ..."
                )


SUM = 2
"""Number that torch's losses save for `reduction="sum"`."""


def check_loss(loss: Tensor, *, samples: int) -> None:
    """Raise an error if the value cannot be the mean loss of a micro-batch.

    For torch's own loss functions, the autograd graph shows whether the loss is a sum. A sum that
    is written out, `losses.sum()`, may be a mean whose weights were already multiplied in.
    `lb.check` detects a written-out sum by repeating samples.

    Args:
        loss: Loss of the micro-batch.
        samples: Number of samples in the micro-batch.

    Raises:
        ValueError: The loss is not a scalar, has no autograd graph, or is a sum.
    """
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise ValueError(
            "control.backward was given a value without an autograd graph, but it needs the loss "
            "tensor itself. Do not call loss.item() or loss.detach(), and do not run the model "
            "under torch.no_grad(). For example: control.backward(loss_fn(model(x), y))."
        )
    if loss.dim() != 0:
        raise ValueError(
            f"The loss has the shape {tuple(loss.shape)}, but control.backward needs a scalar, the "
            "mean over the micro-batch. Pass control.backward(loss.mean())."
        )
    if samples > 1 and getattr(loss.grad_fn, "_saved_reduction", None) == SUM:
        raise ValueError(
            "The loss is a sum (reduction='sum'), so a larger micro-batch would also move the "
            "weights further. Pass the mean, control.backward(loss / len(x)), and multiply the "
            "learning rate by the micro-batch size for which it was tuned."
        )


def weight_of(weight: float | Tensor | None, *, samples: int) -> float:
    """Return the weight of a micro-batch: the given weight, or its number of samples.

    Raises:
        ValueError: The weight is not finite, or it is not above 0.
    """
    weight = samples if weight is None else float(weight)
    if not 0.0 < weight < math.inf:
        raise ValueError(
            f"weight={weight!r} was given, but the weight of a micro-batch must be finite and "
            "above 0. If nothing in the micro-batch counts, pass a zero loss with a tiny weight: "
            "control.backward(0.0 * model(x).sum(), weight=1e-6)."
        )
    return weight


def memory_advice(samples: int) -> str:
    """Return advice for a micro-batch that is too large for the memory.

    Args:
        samples: Number of samples in the micro-batch.
    """
    half = max(samples // 2, 1)
    return (
        f"A micro-batch of {samples} samples was too large for the memory. Accumulate smaller "
        f"micro-batches: lb.BatchLoader(dataset, batch_size=512, max_micro_batch_size={half}). "
        'Or pass max_micro_batch_size="auto" to find the largest size that fits.'
    )
