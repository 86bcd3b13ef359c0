"""Train a small module with Lightning's Trainer and with an equivalent plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, TensorDataset

import largebatch as lb
from largebatch.integrations.lightning import LargeBatch
from small_runs import Optimize, data, loss_of, sgd, small_model, weights

NOISES = (
    "ignore:You defined a .validation_step. but have no .val_dataloader.",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches .* is smaller than the logging interval",
    "ignore:.*LeafSpec.* is deprecated",
)
"""Warnings that Lightning gives in every small run on a CPU, for reasons other than the callback.
"""

MakeScheduler = Callable[[Optimizer], LRScheduler]


class Module(LightningModule):
    """A small regression."""

    def __init__(
        self,
        optimize: Optimize = sgd,
        schedule: MakeScheduler | None = None,
        interval: str = "step",
    ) -> None:
        super().__init__()
        self.net = small_model()
        self.optimize, self.schedule, self.interval = optimize, schedule, interval

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor | None:
        return loss_of(self.net, *batch)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.log("validation", loss_of(self.net, *batch))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimize(self)
        if self.schedule is None:
            return optimizer
        scheduler = {"scheduler": self.schedule(optimizer), "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def loader(samples: int = 48, *, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(samples)), batch_size=batch_size, **options)


def scaled(rule: lb.Rule | None = None, **options: Any) -> LargeBatch:
    return LargeBatch(rule or lb.AdaScale(), **{"base_batch_size": 4, **options})


def trainer_of(*callbacks: Any, **options: Any) -> Trainer:
    usual: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "accumulate_grad_batches": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **{**usual, **options})


def fit(
    callback: LargeBatch, *, module: Module | None = None, train: Any = None, **options: Any
) -> tuple[Module, Trainer]:
    module = module or Module()
    trainer = trainer_of(callback, **options)
    trainer.fit(module, loader() if train is None else train)
    return module, trainer


def steps_of(samples: int = 48, *, batch_size: int = 4, accumulation: int = 3) -> list[Any]:
    """Return one epoch of steps as lists of micro-batches. The last ones may be shorter."""
    x, y = data(samples)
    parts = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    return [parts[at : at + accumulation] for at in range(0, len(parts), accumulation)]


class Plain:
    """Train with a plain loop and `lb.attach`."""

    def __init__(
        self,
        rule: lb.Rule | None = None,
        *,
        optimize: Optimize = sgd,
        clip_norm: float | None = None,
        schedule: MakeScheduler | None = None,
        autocast: torch.dtype | None = None,
        scaler: GradScaler | None = None,
        batch_size: int = 12,
        **options: Any,
    ) -> None:
        self.record = lb.MemoryRecord()
        self.model = small_model()
        self.optimizer = optimize(self.model)
        self.scheduler = schedule(self.optimizer) if schedule else None
        self.clip_norm, self.autocast, self.scaler = clip_norm, autocast, scaler
        options = {"base_batch_size": 4, "record": self.record, "scaler": scaler, **options}
        self.control = lb.attach(
            self.model, self.optimizer, rule or lb.AdaScale(), batch_size=batch_size, **options
        )

    def step(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        scaler = self.scaler or GradScaler("cpu", enabled=False)
        self.optimizer.zero_grad()
        for x, y in parts:
            with torch.autocast("cpu", dtype=self.autocast) if self.autocast else nullcontext():
                loss = loss_of(self.model, x, y)
            self.control.micro_batch(len(x), weight=1)
            self.control.loss(loss)
            scaler.scale(loss / len(parts)).backward()
        scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.control.advance(self.scheduler)


def decisions(record: lb.MemoryRecord) -> list[Any]:
    """Return measurements without the loss, which Lightning divides, and decisions."""
    return [
        (seen.batch_size, seen.moments, seen.base_lr, seen.finite, decision)
        for seen, decision in record.steps
    ]


def assert_same_bits(ours: nn.Module, theirs: nn.Module) -> None:
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(a, b)
