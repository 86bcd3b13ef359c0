"""What a Lightning Trainer must be for a rule to run in it, and how large its micro-batches are."""

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
"""A scheduler's `frequency` that no number of batches is a multiple of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSizes:
    """The samples of this rank's micro-batches in an epoch.

    Args:
        size: of each but the last.
        last: of the last.
        count: how many an epoch has; None where all are alike.
        dataset_size: what this rank takes in an epoch; None where unknown.
        resumes: whether the loader goes on by itself within an epoch.
    """

    size: int
    last: int
    count: int | None = None
    dataset_size: int | None = None
    resumes: bool = False

    def samples(self, index: int) -> int:
        """Of the micro-batch at this index of the epoch."""
        return self.last if self.count is not None and index == self.count - 1 else self.size


def check_rule_keeps_batch(rule: Rule) -> None:
    """Refuses a rule that changes the batch, which Lightning's loader makes.

    Raises:
        ValueError: naming the rule.
    """
    names = [name_of(one) for one in chain(rule).rules if "batch" in one.changes | one.bounds]
    if names:
        raise ValueError(
            f"{', '.join(names)} changes or bounds the batch, but under Lightning's Trainer its "
            "DataLoader makes it. Use Lightning Fabric, where the loop is yours: "
            "lb.Controller(model, optimizer, rule, lb.BatchLoader(dataset, batch_size=64), "
            "base_batch_size=64); examples/fabric_loop.py is a whole program."
        )


def check_trainer(trainer: Trainer, module: LightningModule) -> None:
    """Refuses a kind of training in which the rule would not see or reach a step.

    Raises:
        ValueError: manual optimization, a batch that changes, or a strategy that was not tried.
    """
    if any(isinstance(one, GradientAccumulationScheduler) for one in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "GradientAccumulationScheduler changes the batch between epochs, and LargeBatch is for "
            "one that stays. Trainer(accumulate_grad_batches=8); for a batch that grows, Lightning "
            "Fabric and lb.Controller: examples/fabric_loop.py."
        )
    if not module.automatic_optimization:
        raise ValueError(
            "With manual optimization the steps are the module's own, so LargeBatch cannot tell "
            "when to decide. Leave self.automatic_optimization = True, or write the loop with "
            "Lightning Fabric and lb.Controller: examples/fabric_loop.py."
        )
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
        raise ValueError(
            f"LargeBatch runs on one device and under DDP; {type(trainer.strategy).__name__} is "
            "unverified, and where it shards gradients or steps by itself the statistics would be "
            'wrong. Trainer(strategy="ddp") or Trainer(devices=1).'
        )


def check_optimizer(trainer: Trainer) -> None:
    """Refuses an optimizer that does not step once for each gradient; Lightning itself refuses
    several of them.

    Raises:
        ValueError: L-BFGS.
    """
    if isinstance(trainer.optimizers[0], LBFGS):
        raise ValueError(
            "L-BFGS calls its closure several times in a step, so there is no one gradient to "
            "decide about. Return another optimizer from configure_optimizers: "
            "torch.optim.SGD(self.parameters(), lr=0.1)."
        )


def step_schedulers(
    trainer: Trainer, module: LightningModule, *, in_base_steps: bool | None
) -> list[LRScheduler]:
    """The module's schedulers of interval "step" that shall follow the clock in base steps; they
    are taken out of Lightning's hands.

    Args:
        trainer, module: with their schedulers.
        in_base_steps: what the user said of them.

    Raises:
        ValueError: the user did not say, or they cannot follow a clock.
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
            f'{names} has the interval "step", which is shorter or longer by the scale now that '
            "the batch is not the base batch. Say in what its steps are counted: "
            "LargeBatch(..., schedulers_in_base_steps=True), in the steps for which it was "
            "written; False, in optimizer steps as they come."
        )
    own = is_overridden("lr_scheduler_step", module)
    if own or not all(
        isinstance(config.scheduler, LRScheduler) and config.frequency == 1 for config in found
    ):
        raise ValueError(
            f"{names} cannot follow the clock in base steps: that needs a torch scheduler with "
            "frequency 1 and no lr_scheduler_step of the module's own. Change that, or leave it "
            "to Lightning: LargeBatch(..., schedulers_in_base_steps=False)."
        )
    for config in found:
        config.frequency = NEVER  # its interval stays "step", so LearningRateMonitor shows it
    return [config.scheduler for config in found if isinstance(config.scheduler, LRScheduler)]


def scaler_of(trainer: Trainer) -> GradScaler | None:
    """What scales the losses of a Trainer in half precision; None without."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def loader_sizes(trainer: Trainer, *, batch_size: int | None) -> LoaderSizes:
    """The samples of the Trainer's micro-batches on this rank.

    An epoch is what the Trainer takes of the loader: its samplers' samples, without those that
    drop_last leaves out, and at most limit_train_batches (or overfit_batches) batches.

    Args:
        trainer: whose loader is set up.
        batch_size: of one optimizer step over all ranks, where the user said it.

    Raises:
        ValueError: the size is unknown, is not what the user said, or may become another in a way
            that cannot be told.
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
            "This DataLoader's data has no length and its last batches may be smaller, so their "
            "samples cannot be known. Leave them out: DataLoader(..., drop_last=True)."
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
            f"batch_size={batch_size} was told, but a step has {size * share} samples: {size} of "
            f"the DataLoader x {share} micro-batches (accumulated batches x processes). Leave "
            "batch_size out: it is known."
        )


def _of_own_batches(
    sizes: Sequence[int], batch_size: int | None, *, share: int, epoch: int | None
) -> LoaderSizes:
    """The sizes of a batch sampler of the user's own, whose batches are alike but for the last."""
    size, last = sizes[0], sizes[-1]
    if last > size or {*sizes[:-1]} - {size}:
        raise ValueError(
            f"The batch sampler's batches have {min(sizes)} to {max(sizes)} samples, but under "
            "Lightning's Trainer all but the last must have the same number. Use Lightning Fabric, "
            "where each is weighted by its samples: lb.Controller(model, optimizer, rule, "
            "lb.BatchLoader(loader, batch_size=512), base_batch_size=64)."
        )
    _check_told(batch_size, size=size, share=share)
    return LoaderSizes(size=size, last=last, count=len(sizes), dataset_size=epoch)


def _told(batch_size: int | None, *, share: int, epoch: int | None, kind: str) -> LoaderSizes:
    if batch_size is None:
        raise ValueError(
            f"How many samples a step has cannot be read from this loader ({kind} without a "
            "batch_size). Say it, over all processes and accumulated batches: "
            "LargeBatch(..., batch_size=512)."
        )
    if batch_size < share or batch_size % share:
        raise ValueError(
            f"batch_size={batch_size} is not shared evenly by the {share} micro-batches of a step "
            f"(accumulated batches x processes). batch_size={max(batch_size // share, 1) * share}"
        )
    size = batch_size // share
    return LoaderSizes(size=size, last=size, dataset_size=epoch)
