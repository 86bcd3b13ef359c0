"""A workload: a model, its data, its loss, and the settings tuned for it at the base batch."""

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
    """Builds a fresh optimizer. The rate has no default, so that none is taken by oversight."""

    def __call__(self, parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """All that a run needs besides the method under study.

    >>> from largebatch.workbench.workloads import load
    >>> workload = load("digits")
    >>> model, optimizer = workload.fresh(seed=0)
    >>> workload.base_batch_size, optimizer.param_groups[0]["lr"] == workload.base_lr
    (16, True)

    Args:
        name: how it is called on the command line.
        summary: one line on model, data and optimizer.
        model: a fresh model; whoever calls it has seeded torch before (`fresh` does).
        data: loads the splits; called once a run.
        loss: mean loss of one micro-batch, a mean over SAMPLES: micro-batches are weighted by
            their sizes, and noise scales are in samples.
        metrics: means over one batch, by name, for `evaluate`; None for the loss alone.
        optimizer: a fresh optimizer with the settings tuned at the base batch.
        base_batch_size: B0, in samples.
        base_lr: learning rate tuned at B0, on the validation split.
        schedule: factor of the learning rate over the run, such as `lb.Cosine()`; None: constant.
        micro_batch_size: most samples in one backward call.
        budget_epochs: length of a run at the base batch, in epochs.

    Raises:
        ValueError: a batch size, a rate or a length that is not positive, or a schedule that is
            no dataclass.
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
                raise ValueError(f"Workload {self.name!r}: {field} is positive; got {self!r}.")
        if self.schedule is not None and not is_dataclass(self.schedule):
            raise ValueError(
                f"Workload {self.name!r}: a run's record names its schedule, so it is a value such "
                f"as schedule=lb.Cosine() or a dataclass of your own; got {self.schedule!r}."
            )

    def fresh(
        self, *, seed: int, lr: float | None = None, device: torch.device | str = "cpu"
    ) -> tuple[nn.Module, Optimizer]:
        """A model initialised from `seed` and its optimizer; torch's own generator stays as it is.

        Args:
            seed: the same seed gives the same weights, on every rank.
            lr: learning rate instead of the base rate.
            device: where the model goes after it was initialised on the CPU.

        Raises:
            ValueError: a seed of more than 64 bits, which torch does not take.
        """
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"A seed is a whole number of 64 bits; got {seed}.")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone
            model = self.model().to(device)
        return model, self.optimizer(model.parameters(), lr=self.base_lr if lr is None else lr)
