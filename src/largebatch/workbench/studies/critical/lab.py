"""Where the runs take place: one workload, its data, the loss that judges, and what was spent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Subset

from largebatch.act.controller import Controller
from largebatch.act.loader import BatchLoader
from largebatch.act.stream import seed_of
from largebatch.checks.models import BATCH_NORMS
from largebatch.checks.snapshot import copy_run
from largebatch.core.errors import NotFinite
from largebatch.core.rule import Rule
from largebatch.measure.parameters import bare
from largebatch.workbench.runs.distributed import Place
from largebatch.workbench.workloads import Batch, Data, Workload, evaluate
from largebatch.workbench.workloads.data import Split, size

JUDGED = 1024
"""Validation samples on which a loss is judged, the same ones always."""


@dataclass(slots=True)
class Spent:
    """Training so far; mutable."""

    samples: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """What all runs of a workload share.

    Args:
        workload: what is trained.
        data: its splits.
        place: device and ranks.
        budget: samples of the base run.
        spent: counts the steps of every run.
    """

    workload: Workload
    data: Data
    place: Place
    budget: int
    spent: Spent

    @property
    def base(self) -> int:
        """B, in samples."""
        return self.workload.base_batch_size

    def loss(self, model: nn.Module) -> float:
        """Of a model on the fixed part of the validation split, the same on every rank; infinite
        where it is no number."""
        value = 0.0
        if self.place.leader:
            judge = replace(self.workload, metrics=None)
            value = evaluate(bare(model), judge, part_of(self.data.validation, JUDGED))["loss"]
        if self.place.ranks > 1:
            shared = torch.tensor(value, dtype=torch.float64, device=self.place.device)
            dist.broadcast(shared, src=0)
            value = float(shared)
        return value if math.isfinite(value) else math.inf

    def run(self, *, rule: Rule, batch_size: int, seed: int, lr: float | None = None) -> Run:
        """A fresh run."""
        model, optimizer = self.workload.fresh(seed=seed, lr=lr, device=self.place.device)
        with torch.random.fork_rng(devices=self._devices):
            torch.manual_seed(seed_of("training", seed, self.place.rank))
            states = self._states()
        replica = self.place.replicate(model)
        return Run(self, replica, optimizer, rule, batch_size=batch_size, seed=seed, states=states)

    @property
    def _devices(self) -> list[torch.device]:
        return [self.place.device] if self.place.device.type == "cuda" else []

    def _states(self) -> list[torch.Tensor]:
        own = [torch.cuda.get_rng_state(device) for device in self._devices]
        return [torch.get_rng_state(), *own]

    def _restore(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


class Run:
    """A training that goes on from where it stopped, and of which branches are made.

    Mutable: holds model, optimizer, place in the data and random state.

    Args:
        lab: where it takes place.
        model: in DistributedDataParallel where several processes share the batch.
        optimizer: with the rate of the base batch.
        rule: what sets the rate.
        batch_size: in samples.
        seed: of the stream.
        states: of torch's generators.
    """

    def __init__(
        self,
        lab: Lab,
        model: nn.Module,
        optimizer: Optimizer,
        rule: Rule,
        *,
        batch_size: int,
        seed: int,
        states: list[torch.Tensor],
    ) -> None:
        self.lab, self.model, self.rule = lab, model, rule
        self.diverged = False
        self._seed, self._states = seed, states
        batches = BatchLoader(
            lab.data.train,
            batch_size=batch_size,
            max_micro_batch_size=_micro_batch(lab.workload, model),
            seed=seed,
        )
        self.control = Controller(model, optimizer, rule, batches, base_batch_size=lab.base)

    def branch(self, batch_size: int) -> Run:
        """A copy that goes on with another batch: the same weights, optimizer state, random state
        and coming samples. The run itself stays as it is."""
        model, optimizer = copy_run(self.model, self.control.optimizer)
        twin = Run(
            self.lab,
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
        """Trains until so many samples were taken since the run's beginning, or it diverges.

        Args:
            samples: over all ranks.
            budget: of the whole run, of which schedules are fractions; None for the lab's.
            until: asked after each step, whether to stop.
        """
        control, lab = self.control, self.lab
        if self.diverged or control.samples >= samples:
            return
        with torch.random.fork_rng(devices=lab._devices):
            lab._restore(self._states)
            try:
                for batch in control.steps(samples=budget or lab.budget):
                    before = control.samples
                    for micro_batch in batch:
                        control.backward(lab.workload.loss(self.model, self._moved(micro_batch)))
                    control.step()
                    lab.spent.steps += 1
                    lab.spent.samples += control.samples - before
                    if control.samples >= samples or (until is not None and until()):
                        break
            except NotFinite:
                self.diverged = True
            self._states = lab._states()

    @property
    def loss(self) -> float:
        """Where it stands, on the fixed part of the validation split."""
        return math.inf if self.diverged else self.lab.loss(self.model)

    def _moved(self, micro_batch: Batch) -> Batch:
        return tuple(tensor.to(self.lab.place.device) for tensor in micro_batch)


def part_of(split: Split, most: int) -> Split:
    """At most so many samples of a split, evenly from all of it.

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
    """Few backward calls, but batch normalization sees the same number at every batch."""
    if any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        return min(workload.micro_batch_size, workload.base_batch_size)
    return workload.micro_batch_size
