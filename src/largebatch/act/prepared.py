"""Finds torch's own optimizer and scheduler inside those that `accelerate.prepare` returns."""

from __future__ import annotations

import sys
from typing import Any


def bare_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside accelerate's `AcceleratedOptimizer`, else `optimizer` itself."""
    while _is_a(optimizer, "accelerate.optimizer", "AcceleratedOptimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def bare_scheduler(scheduler: Any) -> Any:
    """Return the scheduler inside accelerate's `AcceleratedScheduler`, else `scheduler` itself.

    accelerate's own steps once per process. A clock in base steps knows the whole batch already.
    """
    while _is_a(scheduler, "accelerate.scheduler", "AcceleratedScheduler"):
        scheduler = scheduler.scheduler
    return scheduler


def _is_a(value: object, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)  # whoever has such an object has imported it
    return loaded is not None and isinstance(value, vars(loaded)[name])
