"""The learning rate: multiplied inside one optimizer step, and schedulers driven by a clock."""

from __future__ import annotations

import math
import sys
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)


class LrActuator:
    """Multiplies every group's learning rate during one `optimizer.step` and restores it.

    Outside the step the optimizer shows the user's own learning rate, so schedulers, logs and
    checkpoints never see the multiplier. A schedule-free optimizer that averages with the learning
    rate as weight sees it, since its average is formed inside the step.

    Mutable: remembers the rates while a step runs.

    Raises:
        ValueError: a parameter group without a learning rate.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if any(group.get("lr") is None for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has a parameter group without a learning rate, which "
                "is what a rule multiplies. Give one: torch.optim.SGD(model.parameters(), lr=0.1)."
            )
        self.optimizer = optimizer
        self._before: list[float | Tensor] = []

    @property
    def base_lr(self) -> float:
        """The first group's learning rate without any multiplier; a tensor is read by the host."""
        return float(self._before[0] if self._before else self.optimizer.param_groups[0]["lr"])

    def apply(self, multiplier: float) -> None:
        """Multiplies the rates, from those that were there before any earlier `apply`."""
        if self._before:
            self.restore()
        groups = self.optimizer.param_groups
        self._before = [_copied(group["lr"]) for group in groups]
        for group, before in zip(groups, self._before, strict=True):
            _set(group, before * multiplier)  # groups may share one tensor

    def restore(self) -> None:
        """Puts the user's rates back; does nothing where none was multiplied."""
        groups = self.optimizer.param_groups
        for group, before in zip(groups, self._before, strict=False):
            _set(group, before)
        self._before = []


def tick(
    scheduler: LRScheduler, *, before: float, after: float, metric: float | None = None
) -> int:
    """Advances a torch scheduler from one value of a clock to another, by whole ticks.

    Args:
        scheduler: any torch scheduler, written in steps of the base batch.
        before, after: the clock in base steps.
        metric: for `ReduceLROnPlateau`, which is stepped once for each metric and never by clock.

    Returns:
        How often the scheduler was stepped: floor(after) - floor(before), less what would lead past
        the end of `OneCycleLR`, which raises there, also within `SequentialLR` and
        `ChainedScheduler`.

    Raises:
        ValueError: `ReduceLROnPlateau` without a metric, or a metric for another scheduler.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        if metric is None:
            raise ValueError(
                "ReduceLROnPlateau follows a metric and not a clock. After each evaluation call "
                "control.advance(scheduler, metric=validation_loss)."
            )
        scheduler.step(metric)
        return 1
    if metric is not None:
        raise ValueError(
            f"{type(scheduler).__name__} follows the clock and takes no metric. Call "
            "control.advance(scheduler) once after each step."
        )
    ticks = _whole(after) - _whole(before)
    ticks = min(ticks, _left(scheduler))
    for _ in range(ticks):
        scheduler.step()
    return ticks


def _left(scheduler: LRScheduler) -> int:
    """Steps before the end of a `OneCycleLR`; what others hold is told by private names alone."""
    if isinstance(scheduler, OneCycleLR):
        return max(scheduler.total_steps - 1 - max(scheduler.last_epoch, 0), 0)
    if isinstance(scheduler, ChainedScheduler):
        return min(map(_left, scheduler._schedulers))
    if isinstance(scheduler, SequentialLR):
        until_last = scheduler._milestones[-1] - scheduler.last_epoch
        return max(until_last, 0) + _left(scheduler._schedulers[-1])
    return sys.maxsize


def _whole(clock: float) -> int:
    """floor(clock), where ten steps worth a tenth each make one whatever their sum's rounding."""
    return math.floor(clock + 1e-6)


def _copied(lr: float | Tensor) -> float | Tensor:
    return lr.clone() if isinstance(lr, Tensor) else lr


def _set(group: dict[str, Any], lr: float | Tensor) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)  # a compiled or captured step holds on to this very tensor
    else:
        group["lr"] = lr
