"""Define a workload: a model, its data, its loss, and settings tuned for the base batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.rules.factors import Factor
from largebatch.workbench.workloads.data import Batch, Data


class OptimizerFactory(Protocol):
    """Make a new optimizer for the given parameters.

    >>> def plain_sgd(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    ...     return torch.optim.SGD(parameters, lr=lr)
    >>> factory: OptimizerFactory = plain_sgd

    The learning rate has no default, so that no default is used by mistake.
    """

    def __call__(self, parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
        """Return a new optimizer with the given learning rate."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Hold everything that a run needs except the method.

    >>> from largebatch.workbench.workloads import load
    >>> workload = load("digits")
    >>> model, optimizer = workload.fresh(seed=0)
    >>> workload.base_batch_size, optimizer.param_groups[0]["lr"] == workload.base_lr
    (16, True)

    Args:
        name: Name of the workload.
        summary: One line of text about the model, the data and the optimizer.
        model: Function that returns a new model. The caller must seed torch before calling the
            function; the method `fresh` seeds torch.
        data: Function that returns the three data splits. The function is called once per run.
        loss: Function that returns the mean loss over the samples of one micro-batch. The loss must
            be a mean over samples, because micro-batches are weighted by their numbers of samples.
        metrics: Function that returns the mean of each metric over one batch, for `evaluate`. By
            default, the only metric is the loss.
        optimizer: Function that returns a new optimizer with settings tuned for the base batch
            size.
        base_batch_size: Base batch size B0, in samples.
        base_lr: Learning rate that is tuned for the base batch size on the validation split.
        schedule: Factor of the learning rate over the run, such as `lb.Cosine()`. By default, the
            learning rate is constant.
        micro_batch_size: Largest number of samples in one backward call.
        budget_epochs: Length of a run at the base batch size, in epochs.

    Raises:
        ValueError: A batch size, the learning rate or the length is not positive, or the schedule
            is not a dataclass.
    """

    name: str
    summary: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss: Callable[[nn.Module, Batch], Tensor]
    metrics: Callable[[nn.Module, Batch], Mapping[str, Tensor]] | None = None
    optimizer: OptimizerFactory
    base_batch_size: int
    base_lr: float
    schedule: Factor | None = None
    micro_batch_size: int
    budget_epochs: float

    def __post_init__(self) -> None:
        for field in ("base_batch_size", "micro_batch_size", "base_lr", "budget_epochs"):
            if not getattr(self, field) > 0:
                raise ValueError(
                    f"The workload {self.name!r} was given {field}={getattr(self, field)}, but "
                    f"{field} must be above 0. Pass a positive value: Workload({field}=1, ...)"
                )
        if self.schedule is not None and not is_dataclass(self.schedule):
            raise ValueError(
                f"The workload {self.name!r} was given the schedule {self.schedule!r}, which is "
                "not a dataclass, so the record of a run could not store it. Pass "
                "schedule=lb.Cosine() or a dataclass of your own."
            )

    def fresh(
        self, *, seed: int, lr: float | None = None, device: torch.device | str = "cpu"
    ) -> tuple[nn.Module, Optimizer]:
        """Return a new model and its optimizer.

        torch's own random generator is not changed.

        Args:
            seed: Seed of the weights. The same seed gives the same weights on every rank.
            lr: Learning rate. The default learning rate is the base learning rate of the workload.
            device: Device of the model. The weights are initialized on the CPU and then moved.

        Raises:
            ValueError: The seed has more than 64 bits, which torch does not support.
        """
        if not -(2**63) <= seed < 2**63:
            raise ValueError(
                f"seed={seed} was given, but the seed must be a whole number of at most 64 bits. "
                "Pass seed=0."
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # Seeds only the CPU's generator.
            model = self.model().to(device)
        return model, self.optimizer(model.parameters(), lr=self.base_lr if lr is None else lr)
