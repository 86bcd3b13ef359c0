"""Multiply the learning rate inside one optimizer step, and step schedulers once per base step."""

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
    """Multiply the learning rate of every parameter group during one `optimizer.step`, and restore
    it.

    Outside the step, the optimizer shows the user's own learning rate, so schedulers, logs and
    checkpoints never see the factor. A schedule-free optimizer that uses the learning rate as an
    averaging weight does see the factor, because it averages inside the step.

    This class is mutable: it remembers the user's learning rates while a step runs.

    Raises:
        ValueError: A parameter group has no learning rate.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if any(group.get("lr") is None for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has a parameter group without a learning rate, but "
                "the rule multiplies the learning rate of every group. Set a learning "
                "rate: "
                "torch.optim.SGD(model.parameters(), lr=0.1)."
            )
        self.optimizer = optimizer
        self._before: list[float | Tensor] = []

    @property
    def base_lr(self) -> float:
        """Learning rate of the first parameter group, without any factor.

        If the learning rate is a tensor, reading it waits for the device.
        """
        return float(self._before[0] if self._before else self.optimizer.param_groups[0]["lr"])

    def apply(self, multiplier: float) -> None:
        """Multiply the user's learning rates; a new factor replaces an earlier one."""
        if self._before:
            self.restore()
        groups = self.optimizer.param_groups
        self._before = [_copied(group["lr"]) for group in groups]
        for group, before in zip(groups, self._before, strict=True):
            _set(group, before * multiplier)  # from `before`: groups may share one tensor

    def restore(self) -> None:
        """Restore the user's learning rates; do nothing if they are not multiplied."""
        groups = self.optimizer.param_groups
        for group, before in zip(groups, self._before, strict=False):
            _set(group, before)
        self._before = []


def tick(
    scheduler: LRScheduler, *, before: float, after: float, metric: float | None = None
) -> int:
    """Step a torch scheduler once for each whole base step between two values of `base_steps`.

    Args:
        scheduler: Any torch scheduler that is written in base steps.
        before, after: Value of `base_steps` before and after the optimizer step.
        metric: Value for `ReduceLROnPlateau`, which is stepped once per metric and never per base
            step.

    Returns:
        Number of times the scheduler was stepped: floor(after) - floor(before). Steps past the end
        of a `OneCycleLR` are left out, because `OneCycleLR` raises an error at such a step, also
        inside a `SequentialLR` or a `ChainedScheduler`.

    Raises:
        ValueError: A `ReduceLROnPlateau` has no metric, or another scheduler was given a metric.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        if metric is None:
            raise ValueError(
                "control.advance was called for ReduceLROnPlateau without a metric, but this "
                "scheduler is stepped by a metric, not by base steps. After each evaluation, call "
                "control.advance(scheduler, metric=validation_loss)."
            )
        scheduler.step(metric)
        return 1
    if metric is not None:
        raise ValueError(
            f"A metric was given for {type(scheduler).__name__}, but this scheduler is stepped "
            "once per base step. Call control.advance(scheduler) once after each step, without a "
            "metric."
        )
    ticks = _whole(after) - _whole(before)
    ticks = min(ticks, _left(scheduler))
    for _ in range(ticks):
        scheduler.step()
    return ticks


def _left(scheduler: LRScheduler) -> int:
    """Return how many steps remain before the end of a `OneCycleLR`, also inside other schedulers.

    `ChainedScheduler` and `SequentialLR` hold their schedulers in private attributes only.
    """
    if isinstance(scheduler, OneCycleLR):
        return max(scheduler.total_steps - 1 - max(scheduler.last_epoch, 0), 0)
    if isinstance(scheduler, ChainedScheduler):
        return min(map(_left, scheduler._schedulers))
    if isinstance(scheduler, SequentialLR):
        until_last = scheduler._milestones[-1] - scheduler.last_epoch
        return max(until_last, 0) + _left(scheduler._schedulers[-1])
    return sys.maxsize


def _whole(clock: float) -> int:
    """Return the number of whole base steps, so that ten steps of 0.1 make one base step despite
    rounding.
    """
    return math.floor(clock + 1e-6)


def _copied(lr: float | Tensor) -> float | Tensor:
    return lr.clone() if isinstance(lr, Tensor) else lr


def _set(group: dict[str, Any], lr: float | Tensor) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)  # a compiled or captured step refers to this same tensor
    else:
        group["lr"] = lr
