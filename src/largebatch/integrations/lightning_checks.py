"""Check that a rule can run in a Lightning Trainer, and find the Trainer's micro-batch sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.amp import GradScaler
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import LBFGS
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from largebatch.act.passes import known_length, samples_of_pass, sizes_of_batches
from largebatch.core.rule import Rule, chain, name_of

NEVER = 2**62
"""Value for a scheduler's `frequency` that is larger than any number of batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSizes:
    """Hold the numbers of samples in this rank's micro-batches of one epoch.

    Args:
        size: Number of samples in each micro-batch except the last one of the epoch.
        last: Number of samples in the last micro-batch of the epoch.
        count: Number of micro-batches in one epoch, or None if all micro-batches have the same
            size.
        dataset_size: Number of samples that this rank takes in one epoch, or None if it is unknown.
        resumes: Whether the loader itself can resume in mid-epoch.
    """

    size: int
    last: int
    count: int | None = None
    dataset_size: int | None = None
    resumes: bool = False

    def samples(self, index: int) -> int:
        """Return the number of samples in the micro-batch at an index of the epoch."""
        return self.last if self.count is not None and index == self.count - 1 else self.size


def check_rule_keeps_batch(rule: Rule) -> None:
    """Raise an error if the rule changes the batch size, which Lightning's data loader determines.

    Raises:
        ValueError: The rule changes or bounds the batch size.
    """
    names = [name_of(one) for one in chain(rule).rules if "batch" in one.changes | one.bounds]
    if names:
        raise ValueError(
            f"{', '.join(names)} changes or bounds the batch size, but in Lightning's Trainer the "
            "DataLoader determines the batch size. Write the training loop with Lightning Fabric "
            "and lb.Controller(model, optimizer, rule, lb.BatchLoader(dataset, batch_size=64), "
            "base_batch_size=64). The file examples/fabric_loop.py is a complete program."
        )


def check_trainer(trainer: Trainer, module: LightningModule) -> None:
    """Raise an error if the rule could not measure or change every training step of this Trainer.

    Raises:
        ValueError: The module uses manual optimization, the number of accumulated batches changes,
            or the strategy is not supported.
    """
    if any(isinstance(one, GradientAccumulationScheduler) for one in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "GradientAccumulationScheduler changes the batch size between epochs, but LargeBatch "
            "requires a constant batch size. Remove the callback and pass "
            "Trainer(accumulate_grad_batches=8). For a growing batch, use Lightning Fabric and "
            "lb.Controller, as in examples/fabric_loop.py."
        )
    if not module.automatic_optimization:
        raise ValueError(
            "The module uses manual optimization, so LargeBatch does not know when an optimizer "
            "step begins. Set self.automatic_optimization = True, or write the loop with Lightning "
            "Fabric and lb.Controller, as in examples/fabric_loop.py."
        )
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
        raise ValueError(
            f"The strategy {type(trainer.strategy).__name__} is not supported, because it was not "
            "tested and its statistics could be wrong. LargeBatch supports one device and DDP. "
            'Pass Trainer(strategy="ddp") or Trainer(devices=1).'
        )


def check_optimizer(trainer: Trainer) -> None:
    """Raise an error if the optimizer needs several gradients per step, as L-BFGS does.

    Lightning itself rejects several optimizers under automatic optimization.

    Raises:
        ValueError: The optimizer is L-BFGS.
    """
    if isinstance(trainer.optimizers[0], LBFGS):
        raise ValueError(
            "L-BFGS is not supported, because it computes several gradients per step and a rule "
            "decides about only one gradient. Return another optimizer from configure_optimizers: "
            "torch.optim.SGD(self.parameters(), lr=0.1)."
        )


def step_schedulers(
    trainer: Trainer, module: LightningModule, *, in_base_steps: bool | None
) -> list[LRScheduler]:
    """Return the module's schedulers of interval "step" that must advance in base steps.

    Lightning no longer advances the returned schedulers.

    Args:
        trainer: Trainer with the schedulers.
        module: Module whose `lr_scheduler_step` may be overridden.
        in_base_steps: The user's argument `schedulers_in_base_steps`.

    Raises:
        ValueError: The user did not choose a unit, or a scheduler cannot advance in base steps.
    """
    found = [
        config
        for config in trainer.lr_scheduler_configs
        if config.interval == "step" and not config.reduce_on_plateau
    ]
    if not found or in_base_steps is False:
        return []
    names = ", ".join(type(config.scheduler).__name__ for config in found)
    if in_base_steps is None:
        raise ValueError(
            f'{names} has the interval "step", but it is unknown which steps the scheduler counts. '
            "If the scheduler's numbers are base steps, pass LargeBatch(..., "
            "schedulers_in_base_steps=True). If the scheduler's numbers are optimizer steps at the "
            "current batch size, pass LargeBatch(..., schedulers_in_base_steps=False)."
        )
    own = is_overridden("lr_scheduler_step", module)
    if own or not all(
        isinstance(config.scheduler, LRScheduler) and config.frequency == 1 for config in found
    ):
        raise ValueError(
            f"{names} cannot advance in base steps. Base steps require a torch scheduler with "
            "frequency 1, and a module that does not override lr_scheduler_step. Change the "
            "scheduler or the module, or let Lightning advance the scheduler: "
            "LargeBatch(..., schedulers_in_base_steps=False)."
        )
    for config in found:
        config.frequency = NEVER  # LearningRateMonitor still logs a scheduler of interval "step"
    return [config.scheduler for config in found if isinstance(config.scheduler, LRScheduler)]


def scaler_of(trainer: Trainer) -> GradScaler | None:
    """Return the gradient scaler of a Trainer in half precision, or None if there is no scaler."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def loader_sizes(trainer: Trainer, *, batch_size: int | None) -> LoaderSizes:
    """Return the numbers of samples in the Trainer's micro-batches on this rank.

    An epoch contains the samples of the loader's sampler, except samples that `drop_last` leaves
    out. The Trainer takes at most `limit_train_batches` (or `overfit_batches`) batches per epoch.

    Args:
        trainer: Trainer whose data loader is set up.
        batch_size: Number of samples of one optimizer step over all ranks, or None if the user did
            not pass this number.

    Raises:
        ValueError: The size of the batches is unknown, differs from the user's `batch_size`, or may
            change in a way that cannot be predicted.
    """
    loader: Any = trainer.train_dataloader
    limit = trainer.num_training_batches
    epoch = samples_of_pass(loader, most=None if limit == math.inf else int(limit))
    share = trainer.accumulate_grad_batches * trainer.world_size
    batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
    if type(batches) is not BatchSampler:
        sizes = batches and sizes_of_batches(batches, dataset=loader.dataset)
        if sizes:
            return _of_own_batches(sizes, batch_size, share=share, epoch=epoch)
        return _told(batch_size, share=share, epoch=epoch, kind=type(loader).__name__)
    size = batches.batch_size
    _check_told(batch_size, size=size, share=share)
    resumes = isinstance(loader, Stateful)
    if batches.drop_last:
        return LoaderSizes(size=size, last=size, dataset_size=epoch, resumes=resumes)
    samples = known_length(batches.sampler)
    if samples is None or isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "The data of this DataLoader has no length, so it is unknown how many samples the last "
            "batches have. Leave incomplete batches out: DataLoader(..., drop_last=True)."
        )
    count = -(-samples // size)
    return LoaderSizes(
        size=size,
        last=samples - (count - 1) * size,
        count=count,
        dataset_size=epoch,
        resumes=resumes,
    )


def _check_told(batch_size: int | None, *, size: int, share: int) -> None:
    if batch_size not in (None, size * share):
        raise ValueError(
            f"batch_size={batch_size} was given, but an optimizer step has {size * share} samples: "
            f"{size} per batch of the DataLoader x {share} micro-batches (accumulated batches x "
            f"processes). Remove the argument, or pass batch_size={size * share}."
        )


def _of_own_batches(
    sizes: Sequence[int], batch_size: int | None, *, share: int, epoch: int | None
) -> LoaderSizes:
    """Return the batch sizes of a user's own batch sampler.

    All batches except the last must have the same size.
    """
    size, last = sizes[0], sizes[-1]
    if last > size or {*sizes[:-1]} - {size}:
        raise ValueError(
            f"The batches of the batch sampler have {min(sizes)} to {max(sizes)} samples, but in "
            "Lightning's Trainer all batches except the last must have the same size. Use "
            "Lightning Fabric, where each batch is weighted by its samples: "
            "lb.Controller(model, optimizer, rule, "
            "lb.BatchLoader(loader, batch_size=512), base_batch_size=64)."
        )
    _check_told(batch_size, size=size, share=share)
    return LoaderSizes(size=size, last=last, count=len(sizes), dataset_size=epoch)


def _told(batch_size: int | None, *, share: int, epoch: int | None, kind: str) -> LoaderSizes:
    if batch_size is None:
        raise ValueError(
            f"The number of samples per step cannot be read from this loader, a {kind} without a "
            "batch_size. Pass the number over all processes and accumulated batches: "
            "LargeBatch(..., batch_size=512)."
        )
    if batch_size < share or batch_size % share:
        raise ValueError(
            f"batch_size={batch_size} was given, but it is not a multiple of the {share} "
            "micro-batches per step (accumulated batches x processes). Pass "
            f"batch_size={max(batch_size // share, 1) * share}."
        )
    size = batch_size // share
    return LoaderSizes(size=size, last=size, dataset_size=epoch)
