"""Refuses a second control on one optimizer."""

from __future__ import annotations

import gc
from typing import Any, Protocol
from weakref import ref

from torch.optim import Optimizer

_DOORS = {"Attached": "lb.attach or lb.watch", "Controller": "lb.Controller"}


class Claimant(Protocol):
    """A control of an optimizer."""

    @property
    def exclusive(self) -> bool:
        """Whether no other control may claim the optimizer, now or later."""
        ...

    @property
    def finished(self) -> bool:
        """Whether its budget is used up."""
        ...


class Claim:
    """Marks an optimizer as controlled, until it is released or its control is garbage-collected.

    It is a pre-hook of the optimizer that does nothing, so it is found on the optimizer itself, and
    a copy of the optimizer does not have it.

    Args:
        optimizer: that is controlled.
        control: that controls it.

    Raises:
        ValueError: as in `refuse_second`.
    """

    def __init__(self, optimizer: Optimizer, control: Claimant) -> None:
        refuse_second(optimizer, control)
        self._control = ref(control, self._forget)
        self._hook = optimizer.register_step_pre_hook(self)

    @property
    def control(self) -> Claimant | None:
        """The control; None when it was garbage-collected."""
        return self._control()

    def release(self) -> None:
        """Leaves the optimizer to others; a second call does nothing."""
        self._hook.remove()

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Does nothing: the optimizer's hooks are only where a claim is found."""

    def _forget(self, _: ref[Claimant]) -> None:
        self._hook.remove()


def refuse_second(optimizer: Optimizer, control: Claimant) -> None:
    """Refuses a control of an optimizer that another control has claimed.

    Two controls that are not exclusive may claim one optimizer, one after the other.

    Raises:
        ValueError: naming both.
    """
    if _other(optimizer, control) is None:
        return
    gc.collect()  # a control in a reference cycle lives on until then
    other = _other(optimizer, control)
    if other is None:
        return
    first, second = (type(each).__name__ for each in (other, control))
    raise ValueError(
        f"A rule is attached to this optimizer already, by {_DOORS.get(first, first)}, and "
        f"{_DOORS.get(second, second)} would act on the same steps. Call control.close() on the "
        "first, or build the optimizer anew if the first is out of reach. To use two rules, make "
        "one of them: lb.attach(model, optimizer, lb.chain(rule, another), ...)."
    )


def _other(optimizer: Optimizer, control: Claimant) -> Claimant | None:
    # The only list of an optimizer's hooks is private.
    for hook in optimizer._optimizer_step_pre_hooks.values():
        other = hook.control if isinstance(hook, Claim) else None
        if other is None or other is control or (other.finished and not other.exclusive):
            continue
        if other.exclusive or control.exclusive:
            return other
    return None
