"""Make the training runs of a critical-batch study and count their cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Subset

from largebatch.act.controller import Controller
from largebatch.act.loader import BatchLoader
from largebatch.act.stream import seed_of
from largebatch.checks.models import BATCH_NORMS
from largebatch.checks.snapshot import copy_run
from largebatch.core.measurement import Budget
from largebatch.core.rule import Rule
from largebatch.measure.parameters import bare
from largebatch.measure.random_state import set_torch_random_states, torch_random_states
from largebatch.studies.training_loop import train_until
from largebatch.workbench.runs.distributed import Process
from largebatch.workbench.workloads import Batch, Data, Workload, evaluate
from largebatch.workbench.workloads.data import Split, size

JUDGED = 1024
"""Largest number of validation samples on which a loss is evaluated; always the same samples."""


@dataclass(slots=True)
class TrainingCost:
    """Count the samples and optimizer steps of a study. Mutable: every run adds its samples and
    steps.
    """

    samples: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Hold the objects that all runs of one study share.

    Args:
        workload: Workload that is trained.
        data: Data splits of the workload.
        process: Device of this process, and its rank.
        budget: Number of samples of the base run.
        spent: Counter of the samples and optimizer steps of all runs.
    """

    workload: Workload
    data: Data
    process: Process
    budget: int
    spent: TrainingCost

    @property
    def base(self) -> int:
        """Return the base batch size B, in samples."""
        return self.workload.base_batch_size

    def loss(self, model: nn.Module) -> float:
        """Return the loss of a model on a fixed part of the validation split.

        The first rank computes the loss, and every rank returns it. A loss that is not finite is
        returned as infinity.
        """
        value = 0.0
        if self.process.leader:
            judge = replace(self.workload, metrics=None)
            value = evaluate(bare(model), judge, part_of(self.data.validation, JUDGED))["loss"]
        if self.process.ranks > 1:
            shared = torch.tensor(value, dtype=torch.float64, device=self.process.device)
            dist.broadcast(shared, src=0)
            value = float(shared)
        return value if math.isfinite(value) else math.inf

    def training_loss(self, model: nn.Module, micro_batch: Batch) -> Tensor:
        """Move a micro-batch to the device of this process and return the workload's loss."""
        return self.workload.loss(model, self.process.moved(micro_batch))

    def run(self, *, rule: Rule, batch_size: int, seed: int, lr: float | None = None) -> StudyRun:
        """Return a new run that has taken no step yet."""
        model, optimizer = self.workload.fresh(seed=seed, lr=lr, device=self.process.device)
        with torch.random.fork_rng(devices=self.process.accelerators):
            torch.manual_seed(seed_of("training", seed, self.process.rank))
            states = torch_random_states(self.process.accelerators)
        replica = self.process.replicate(model)
        return StudyRun(
            self, replica, optimizer, rule, batch_size=batch_size, seed=seed, states=states
        )


class StudyRun:
    """Train a run that can be paused, resumed and branched.

    Mutable: holds the model, the optimizer, the position in the data and the random state.

    Args:
        study: Study that the run belongs to.
        model: Model, in DistributedDataParallel if several processes share the batch.
        optimizer: Optimizer with the learning rate of the base batch size.
        rule: Rule that sets the learning rate.
        batch_size: Number of samples per optimizer step, over all ranks.
        seed: Seed of the sample order.
        states: States of torch's random generators at the start of the run.
    """

    def __init__(
        self,
        study: Study,
        model: nn.Module,
        optimizer: Optimizer,
        rule: Rule,
        *,
        batch_size: int,
        seed: int,
        states: list[torch.Tensor],
    ) -> None:
        self.study, self.model, self.rule = study, model, rule
        self.diverged = False
        self._seed, self._states, self._counted = seed, states, 0
        batches = BatchLoader(
            study.data.train,
            batch_size=batch_size,
            max_micro_batch_size=_micro_batch(study.workload, model),
            seed=seed,
        )
        self.control = Controller(model, optimizer, rule, batches, base_batch_size=study.base)

    def branch(self, batch_size: int) -> StudyRun:
        """Return a copy of the run that continues with another batch size.

        The copy has the same weights, optimizer state, random state and upcoming samples. The
        original run does not change.
        """
        model, optimizer = copy_run(self.model, self.control.optimizer)
        twin = StudyRun(
            self.study,
            model,
            optimizer,
            self.rule,
            batch_size=self.control.batch_size,
            seed=self._seed,
            states=[state.clone() for state in self._states],
        )
        twin.control.load_state_dict(self.control.state_dict())
        twin.control.resize(batch_size)
        return twin

    def go(
        self,
        samples: int,
        *,
        budget: int | None = None,
        until: Callable[[], bool] | None = None,
    ) -> None:
        """Train until the run has taken the given number of samples since its start, or diverges.

        Args:
            samples: Number of samples over all ranks, counted from the start of the run.
            budget: Length of the whole run in samples, to which a schedule refers. The default
                length is the budget of the study.
            until: Function that is called after each step and returns whether to stop.
        """
        control, study = self.control, self.study
        if self.diverged or control.samples >= samples:
            return
        self._counted = control.samples
        with torch.random.fork_rng(devices=study.process.accelerators):
            set_torch_random_states(self._states, study.process.accelerators)
            diverged = train_until(
                control,
                study.training_loss,
                Budget(samples=budget or study.budget),
                after_step=self._count,
                until=lambda: control.samples >= samples or (until is not None and until()),
            )
            self.diverged = diverged is not None
            self._states = torch_random_states(study.process.accelerators)

    @property
    def loss(self) -> float:
        """Return the current loss on a fixed part of the validation split; infinity if diverged."""
        return math.inf if self.diverged else self.study.loss(self.model)

    def _count(self) -> None:
        self.study.spent.steps += 1
        self.study.spent.samples += self.control.samples - self._counted
        self._counted = self.control.samples


def part_of(split: Split, most: int) -> Split:
    """Return at most `most` samples of a split, taken at even distances.

    >>> part_of((torch.arange(10),), 4)[0].tolist()
    [0, 2, 5, 7]
    """
    count = size(split)
    if count <= most:
        return split
    chosen = [i * count // most for i in range(most)]
    if isinstance(split, tuple):
        return tuple(tensor[chosen] for tensor in split)
    return Subset(split, chosen)


def _micro_batch(workload: Workload, model: nn.Module) -> int:
    """Return the largest micro-batch size of a run.

    The micro-batch size of the workload keeps the number of backward calls small. A model with
    batch normalization uses at most the base batch size, so that its layers see the same number of
    samples at every batch size.
    """
    if any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        return min(workload.micro_batch_size, workload.base_batch_size)
    return workload.micro_batch_size
