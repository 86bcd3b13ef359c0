"""The squared norm of the full gradient, that of the mean loss over a data set, without a trace.

    |grad f|^2,    grad f = sum_j (n_j / n) grad f_j    over micro-batches j of n_j of n samples

Micro-batch j is the same samples under the same random draws whatever the number of ranks, of which
rank r takes j = r, r + R, ...; one collective adds up. So the norm is that of one process up to
rounding, also where modules draw at random or normalize over the micro-batch.

Umeda, Iiduka, 2025, arXiv 2508.05302, compare it with a threshold; their program takes a pass in
training mode, too, which there moves the statistics of batch normalization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset, default_collate

from largebatch.core.errors import LargeBatchError
from largebatch.measure.complex_gradients import real_dense
from largebatch.measure.module_state import keep_module_state
from largebatch.measure.parameters import Parameters
from largebatch.measure.random_state import accelerators_of, keep_random_state, seed_generators
from largebatch.measure.ranks import Ranks
from largebatch.measure.squares import squared_norm

Loss = Callable[[nn.Module, Any], Tensor]


class FullGradient:
    """Passes over a data set, for `lb.Meter(model, full=...)`: the statistic `full_sqnorm`.

    A pass costs a forward and a backward of every sample, which `Measurement.extra_samples` counts,
    and one copy of the gradient. The model stays in the mode that it is in: in training mode
    dropout draws, each time the same, and batch normalization takes the micro-batch's statistics.
    Gradients, buffers, modes and generators are afterwards as they were. Gradients in float16 are
    not scaled here, so that small ones are lost.

    Args:
        dataset: what the mean is over: a tensor, a tuple of tensors that share their first
            dimension, or a data set with a length; the same on every rank.
        loss: (model, micro-batch) -> mean loss over the micro-batch's samples, a scalar.
        micro_batch_size: most samples of one backward.
        collate: list of samples -> micro-batch, for a data set.

    Raises:
        ValueError: a data set without samples or without a length, a loss that cannot be called, or
            a `micro_batch_size` below 1.
    """

    def __init__(
        self,
        dataset: Any,
        loss: Loss,
        *,
        micro_batch_size: int = 100,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        if not callable(loss) or micro_batch_size < 1:
            raise ValueError(
                "The full gradient takes a data set and the mean loss of a micro-batch: "
                "lb.FullGradient(dataset, lambda model, batch: loss_fn(model(batch[0]), batch[1]), "
                f"micro_batch_size=100); got the loss {loss!r} and micro_batch_size="
                f"{micro_batch_size!r}."
            )
        self.samples = _length(dataset)
        self.dataset, self.loss, self.micro_batch_size = dataset, loss, micro_batch_size
        self.collate = collate

    def sqnorm(self, model: nn.Module, parameters: Parameters, ranks: Ranks) -> float:
        """|grad f|^2 at the weights in hand, the same on every rank.

        Args:
            model: bare, not in DistributedDataParallel.
            parameters: those that count.
            ranks: among which the pass is shared; each calls it.

        Raises:
            ValueError: the loss gives no scalar with its graph.
            LargeBatchError: no parameter gets a gradient from it.
        """
        tensors, numbers = parameters.tensors, parameters.real_numbers
        row = torch.zeros(numbers, dtype=parameters.real_dtype, device=tensors[0].device)
        views = parameters.split_real(row)
        devices = accelerators_of(model)
        with keep_random_state(devices), keep_module_state(model), torch.enable_grad():
            for j, share, begin, end in self._cuts(ranks):
                seed_generators(j, devices)
                batch = self._batch(begin, end)
                # This does not touch p.grad, and runs no hook that waits for a gradient there.
                loss = _checked(self.loss(model, batch))
                gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
                _check_used(gradients)
                for view, gradient in zip(views, gradients, strict=True):
                    if gradient is not None:
                        view.add_(real_dense(gradient).to(view), alpha=share)
        return squared_norm(ranks.sum_(row)).item()

    def _cuts(self, ranks: Ranks) -> Iterator[tuple[int, float, int, int]]:
        """Of each micro-batch of this rank: its number, its part of all samples, its begin and end.
        They are nearly equal in size: batch normalization takes no last one of one sample."""
        count = -(-self.samples // self.micro_batch_size)
        for j in range(ranks.rank, count, ranks.count):
            begin, end = self.samples * j // count, self.samples * (j + 1) // count
            yield j, (end - begin) / self.samples, begin, end

    def _batch(self, begin: int, end: int) -> Any:
        data = self.dataset.tensors if isinstance(self.dataset, TensorDataset) else self.dataset
        if isinstance(data, Tensor):
            return data[begin:end]
        if isinstance(data, tuple):
            return tuple([tensor[begin:end] for tensor in data])
        return self.collate([data[index] for index in range(begin, end)])


def _length(dataset: Any) -> int:
    whole = dataset[0] if isinstance(dataset, tuple) and dataset else dataset
    if isinstance(whole, IterableDataset) or not isinstance(whole, Sized) or not len(whole):
        raise ValueError(
            "The full gradient is a mean over a data set with samples and a length, as tensors "
            "(x, y) or a torch.utils.data.Dataset with __len__ and __getitem__; got "
            f"{type(dataset).__name__}."
        )
    return len(whole)


def _checked(loss: Any) -> Tensor:
    if isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad:
        return loss
    raise ValueError(
        "The loss of lb.FullGradient gives no scalar with the graph that made it. As in the loop: "
        "lb.FullGradient(dataset, lambda model, batch: loss_fn(model(batch[0]), batch[1]))."
    )


def _check_used(gradients: tuple[Tensor | None, ...]) -> None:
    if all(gradient is None for gradient in gradients):
        raise LargeBatchError(
            "No parameter of the optimizer got a gradient from the loss of lb.FullGradient. "
            "Compute it with the model that it is given: lambda model, batch: "
            "loss_fn(model(batch[0]), batch[1])."
        )
