"""Prevent two controls from acting on the same optimizer."""

from __future__ import annotations

import gc
from typing import Any, Protocol
from weakref import ref

from torch.optim import Optimizer

_ENTRY_POINTS = {
    "Attached": "lb.attach",
    "Watch": "lb.watch",
    "Controller": "lb.Controller",
}


class Claimant(Protocol):
    """Define what a control of an optimizer offers to `refuse_second`."""

    @property
    def exclusive(self) -> bool:
        """Whether this control excludes any other control of the same optimizer, now and later."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the budget of this control is used up."""
        ...


class Claim:
    """Mark an optimizer as controlled, until the claim is released or its control is
    garbage-collected.

    The claim is a pre-hook of the optimizer that does nothing. The claim can therefore be found on
    the optimizer itself, and a copy of the optimizer does not have the claim.

    Args:
        optimizer: Optimizer that is controlled.
        control: Object that controls the optimizer.

    Raises:
        ValueError: Another control has already claimed the optimizer.
    """

    def __init__(self, optimizer: Optimizer, control: Claimant) -> None:
        refuse_second(optimizer, control)
        self._control = ref(control, self._forget)
        self._hook = optimizer.register_step_pre_hook(self)

    @property
    def control(self) -> Claimant | None:
        """Control that made this claim; None after it was garbage-collected."""
        return self._control()

    def release(self) -> None:
        """Release the optimizer for another control; a second call does nothing."""
        self._hook.remove()

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Do nothing: a claim is a hook only so that it can be found on the optimizer."""

    def _forget(self, _: ref[Claimant]) -> None:
        self._hook.remove()


def refuse_second(optimizer: Optimizer, control: Claimant) -> None:
    """Raise an error if another control has claimed the optimizer.

    Two controls that are not exclusive may claim one optimizer, one after the other.

    Args:
        optimizer: Optimizer to check.
        control: Object that wants to control the optimizer.

    Raises:
        ValueError: Another control has claimed the optimizer; the message names both controls.
    """
    if _other(optimizer, control) is None:
        return
    gc.collect()  # frees an unused control that is part of a reference cycle
    other = _other(optimizer, control)
    if other is None:
        return
    first, second = (type(each).__name__ for each in (other, control))
    raise ValueError(
        f"{_ENTRY_POINTS.get(first, first)} already uses this optimizer, and "
        f"{_ENTRY_POINTS.get(second, second)} would act on the same steps. Call control.close() "
        "on the first control, or build a new optimizer if you no longer have the first control. "
        "To use two rules, combine them: "
        "lb.attach(model, optimizer, lb.chain(rule, another), ...)."
    )


def _other(optimizer: Optimizer, control: Claimant) -> Claimant | None:
    # torch has no public list of an optimizer's hooks.
    for hook in optimizer._optimizer_step_pre_hooks.values():
        other = hook.control if isinstance(hook, Claim) else None
        if other is None or other is control or (other.finished and not other.exclusive):
            continue
        if other.exclusive or control.exclusive:
            return other
    return None
