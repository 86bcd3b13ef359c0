"""Install hooks around the `step` of the optimizers that belong to one control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer

from largebatch.act.step_guard import StepGuard
from largebatch.core.errors import LargeBatchError


class StepHooks:
    """Call functions around each optimizer's outermost `step`, and detect which optimizer is the
    first and which is the last one in a step of the control.

    One step of the control consists of one `step` of every optimizer.

    This class is mutable: it counts which optimizers have stepped.

    Args:
        members: Optimizers of the control.
        before: Function called before each optimizer steps. The arguments of `before` are: whether
            this optimizer is the first one in the step, the optimizer, and the arguments of the
            optimizer's `step`.
        after: Function called after each optimizer has stepped; its argument is True for the last
            optimizer in the step.
        refuse: Function called with an error instead of `before`, if an optimizer steps twice in
            one step.
        abandon: Function called when an optimizer's step raised an exception, before the exception
            reaches the caller.
    """

    def __init__(
        self,
        members: Sequence[Optimizer],
        *,
        before: Callable[[bool, Optimizer, tuple[Any, ...], dict[str, Any]], None],
        after: Callable[[bool], None],
        refuse: Callable[[LargeBatchError], None],
        abandon: Callable[[], None],
    ) -> None:
        self._members = tuple(members)
        self._before, self._after, self._refuse = before, after, refuse
        self._stepped: set[int] = set()
        self._guards = [StepGuard(member, abandon) for member in self._members]
        self._hooks = [
            handle
            for at, member in enumerate(self._members)
            for handle in (
                member.register_step_pre_hook(partial(self._enters, at)),
                member.register_step_post_hook(partial(self._leaves, at)),
            )
        ]

    @property
    def installed(self) -> bool:
        """Whether the hooks are on the optimizers."""
        return bool(self._hooks)

    def reset(self) -> None:
        """Prepare for the next step: check that no step is unfinished, and reset the guards.

        Raises:
            LargeBatchError: Some of the optimizers have stepped, and others have not.
        """
        if self._stepped:
            stepped, waiting = self._names(stepped=True), self._names(stepped=False)
            self._stepped.clear()
            raise LargeBatchError(
                f"control.advance() was called after {stepped} had stepped, but before {waiting} "
                "had stepped. First step every optimizer of the list once, then call "
                "control.advance()."
            )
        for guard in self._guards:
            guard.reset()

    def begin(self) -> None:
        """Begin a new step of the control, so that no optimizer counts as stepped."""
        self._stepped.clear()

    def close(self) -> None:
        """Remove the hooks; a second call does nothing."""
        if self._hooks:
            for handle in self._hooks:
                handle.remove()
            self._hooks = []
            for guard in self._guards:
                guard.close()

    def _enters(self, at: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._guards[at].enter():
            return  # a parent class's step, called by the outermost step
        if at in self._stepped:
            self._refuse(LargeBatchError(self._twice(at)))
        else:
            self._before(not self._stepped, optimizer, args, kwargs)

    def _leaves(self, at: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._guards[at].leave():
            self._stepped.add(at)
            self._after(len(self._stepped) == len(self._members))

    def _twice(self, at: int) -> str:
        kind, waiting = type(self._members[at]).__name__, self._names(stepped=False)
        return (
            f"Optimizer number {at} of the list ({kind}) stepped twice before {waiting} "
            "stepped. If one control has several optimizers, each must step exactly "
            "once per step. If the optimizers take turns, call lb.attach once per optimizer, and "
            "freeze the parameters of the other optimizers."
        )

    def _names(self, *, stepped: bool) -> str:
        """Return the names of the optimizers that have stepped, or of the optimizers that have not
        stepped.
        """
        return ", ".join(
            f"{type(member).__name__} (number {number})"
            for number, member in enumerate(self._members)
            if (number in self._stepped) == stepped
        )
