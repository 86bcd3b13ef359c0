"""Run the training loop of all studies: a controller's steps with a loss, until a condition
holds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from largebatch.act.controller import Controller
from largebatch.act.micro_batches import MicroBatches
from largebatch.checks.checked_run import Loss
from largebatch.core.errors import NotFinite
from largebatch.core.measurement import Budget


def train_until(
    control: Controller,
    loss: Loss,
    budget: Budget,
    *,
    clip_norm: float | None = None,
    during_backward: Callable[[MicroBatches], AbstractContextManager[None]] | None = None,
    after_backward: Callable[[MicroBatches], None] | None = None,
    after_step: Callable[[], None] | None = None,
    until: Callable[[], bool] | None = None,
) -> NotFinite | None:
    """Train until the budget is used up, a condition holds, or training diverges.

    Another call with the same budget continues where the previous call stopped.

    Args:
        control: Controller of the run.
        loss: Function (model, micro-batch) -> mean loss over its samples, a scalar tensor.
        budget: Budget of the whole run; schedules are functions of the fraction that is used.
        clip_norm: Largest norm of the gradient; None does not clip.
        during_backward: Function that is called with the step; the context that it returns
            surrounds the losses and backward calls.
        after_backward: Function that is called with the step when its gradient is complete, before
            the weights move.
        after_step: Function that is called after the weights have moved.
        until: Function that is called last in each step; training stops if it returns True.

    Returns:
        The NotFinite error of a diverged run, or else None.
    """
    around = during_backward or nullcontext
    try:
        for batch in control.steps(**{budget.unit: getattr(budget, budget.unit)}):
            with around(batch):
                for micro_batch in batch:
                    control.backward(loss(control.model, micro_batch))
            if after_backward is not None:
                after_backward(batch)
            control.step(clip_norm=clip_norm)
            if after_step is not None:
                after_step()
            if until is not None and until():
                break
    except NotFinite as error:
        return error
    return None
