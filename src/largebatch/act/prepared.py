"""Unwrap torch's optimizers and schedulers from the objects that `accelerate.prepare` returns."""

from __future__ import annotations

import sys
from typing import Any


def bare_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside accelerate's `AcceleratedOptimizer`, or `optimizer` itself."""
    while _is_a(optimizer, "accelerate.optimizer", "AcceleratedOptimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def bare_scheduler(scheduler: Any) -> Any:
    """Return the scheduler inside accelerate's `AcceleratedScheduler`, or else `scheduler` itself.

    One call of accelerate's scheduler steps the inner scheduler once per process. `base_steps`
    already counts the batch of all processes, so each base step must step the scheduler only once.
    """
    while _is_a(scheduler, "accelerate.scheduler", "AcceleratedScheduler"):
        scheduler = scheduler.scheduler
    return scheduler


def _is_a(value: object, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)  # an object of this class exists only if it was imported
    return loaded is not None and isinstance(value, vars(loaded)[name])
