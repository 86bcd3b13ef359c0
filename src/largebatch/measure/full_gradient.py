"""Compute the squared norm of the full gradient, the gradient of the mean loss over a data set.

    |grad f|^2,    grad f = sum_j (n_j / n) grad f_j    over micro-batches j of n_j of n samples

The pass over the data changes neither the model nor the random generators. Rank r of R ranks
computes the micro-batches j = r, r + R, ..., and one all-reduce sums up the gradients of all ranks.
Micro-batch j has the same samples and the same random draws for any number of ranks. So the norm is
the same for any number of ranks up to rounding, even if modules draw random numbers or normalize
over the micro-batch.

Umeda, Iiduka, 2025, arXiv 2508.05302, compare the norm of the full gradient with a threshold. The
authors' program computes the full gradient in training mode, too, but changes the running
statistics of batch normalization.
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
    """Compute the squared norm of the gradient over a whole data set, the statistic `full_sqnorm`.

    Pass a `FullGradient` to a meter: `lb.Meter(model, full=lb.FullGradient(dataset, loss))`. Each
    pass over the data requires a forward and a backward call for every sample, which
    `Measurement.extra_samples` counts, and memory for one copy of the gradient. The model keeps its
    training or evaluation mode. In training mode, dropout draws the same numbers in each pass over
    the data, and batch normalization uses the micro-batch's statistics. After the pass over the
    data, gradients, buffers, modes and random generators are restored. The loss is not scaled, so
    small gradients in float16 become 0.

    >>> x, model = torch.tensor([[1.0], [3.0]]), nn.Linear(1, 1)
    >>> full = FullGradient(x, lambda model, batch: model(batch).mean())
    >>> parameters = Parameters.of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> full.sqnorm(model, parameters, Ranks())  # the gradient is (2, 1)
    5.0

    Args:
        dataset: The data set of the mean loss, the same on every rank: a tensor, a tuple of tensors
            with a common first dimension, or a data set with a length.
        loss: Function (model, micro-batch) -> mean loss over the micro-batch's samples, a scalar.
        micro_batch_size: Largest number of samples in one backward call.
        collate: Function (list of samples) -> micro-batch, for a data set that is not a tensor.

    Raises:
        ValueError: The data set has no samples or no length, the loss is not callable, or
            `micro_batch_size` is below 1.
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
                f"loss={loss!r} and micro_batch_size={micro_batch_size!r} were given, but the loss "
                "must be a function and micro_batch_size at least 1. Pass the mean loss of a "
                "micro-batch: lb.FullGradient(dataset, "
                "lambda model, batch: loss_fn(model(batch[0]), batch[1]), micro_batch_size=100)."
            )
        self.samples = _length(dataset)
        self.dataset, self.loss, self.micro_batch_size = dataset, loss, micro_batch_size
        self.collate = collate

    def sqnorm(self, model: nn.Module, parameters: Parameters, ranks: Ranks) -> float:
        """Return |grad f|^2 at the present weights, the same value on every rank.

        Args:
            model: The model, not wrapped in DistributedDataParallel.
            parameters: The parameters whose gradient is computed.
            ranks: The ranks that share the pass over the data. Each rank must call this method.

        Raises:
            ValueError: The loss function does not return a scalar with a graph.
            LargeBatchError: No parameter gets a gradient from the loss.
        """
        tensors, numbers = parameters.tensors, parameters.real_numbers
        row = torch.zeros(numbers, dtype=parameters.real_dtype, device=tensors[0].device)
        views = parameters.split_real(row)
        devices = accelerators_of(model)
        with keep_random_state(devices), keep_module_state(model), torch.enable_grad():
            for j, share, begin, end in self._cuts(ranks):
                seed_generators(j, devices)
                batch = self._batch(begin, end)
                # autograd.grad does not change p.grad, and runs no hook that waits for p.grad.
                loss = _checked(self.loss(model, batch))
                gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
                _check_used(gradients)
                for view, gradient in zip(views, gradients, strict=True):
                    if gradient is not None:
                        view.add_(real_dense(gradient).to(view), alpha=share)
        return squared_norm(ranks.sum_(row)).item()

    def _cuts(self, ranks: Ranks) -> Iterator[tuple[int, float, int, int]]:
        """Yield number, share of all samples, begin and end index of each micro-batch of this rank.

        The micro-batches have nearly equal sizes, because batch normalization does not support a
        last micro-batch of one sample.
        """
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
            f"A {type(dataset).__name__} without samples or without a length was given, but the "
            "full gradient is a mean over a data set. Pass tensors, lb.FullGradient((x, y), loss), "
            "or a torch.utils.data.Dataset that has __len__ and __getitem__."
        )
    return len(whole)


def _checked(loss: Any) -> Tensor:
    if isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad:
        return loss
    raise ValueError(
        "The loss function of lb.FullGradient did not return a scalar with a graph for backward(). "
        "Return the mean loss as in the training loop: "
        "lb.FullGradient(dataset, lambda model, batch: loss_fn(model(batch[0]), batch[1]))."
    )


def _check_used(gradients: tuple[Tensor | None, ...]) -> None:
    if all(gradient is None for gradient in gradients):
        raise LargeBatchError(
            "No parameter of the optimizer got a gradient from the loss of lb.FullGradient. In the "
            "loss function, call the model that is its first argument: "
            "lambda model, batch: loss_fn(model(batch[0]), batch[1])."
        )
