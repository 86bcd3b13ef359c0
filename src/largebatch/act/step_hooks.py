"""The hooks around the `step` of one or several optimizers that belong to one control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer

from largebatch.act.step_guard import StepGuard
from largebatch.core.errors import LargeBatchError


class StepHooks:
    """Calls back around each outermost `step`, and knows the first and the last one of a step.

    Mutable: counts which optimizers have stepped.

    Args:
        members: the optimizers.
        before: called before each of them steps, with whether it is the step's first one, and with
            the optimizer and its arguments.
        after: called after each of them, with whether it is the step's last one.
        refuse: called with the error in place of `before` if one of them steps twice in a step.
        abandon: called when one of them has raised, before the exception goes on.
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
        """Begin a step between two steps: no optimizer has stepped yet.

        Raises:
            LargeBatchError: some of the optimizers have stepped, and others not.
        """
        if self._stepped:
            stepped, waiting = self._names(stepped=True), self._names(stepped=False)
            self._stepped.clear()
            raise LargeBatchError(
                f"control.advance() was called after {stepped} stepped and before {waiting} did. "
                "Let every optimizer of the list step once, then call control.advance()."
            )
        for guard in self._guards:
            guard.reset()

    def begin(self) -> None:
        """Begin a step within the hook of the last one."""
        self._stepped.clear()

    def close(self) -> None:
        """Take the hooks off; a second call does nothing."""
        if self._hooks:
            for handle in self._hooks:
                handle.remove()
            self._hooks = []
            for guard in self._guards:
                guard.close()

    def _enters(self, at: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._guards[at].enter():
            return  # the step of a parent class, within this one
        if at in self._stepped:
            self._refuse(LargeBatchError(self._twice(at)))
        else:
            self._before(not self._stepped, optimizer, args, kwargs)

    def _leaves(self, at: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._guards[at].leave():
            self._stepped.add(at)
            self._after(len(self._stepped) == len(self._members))

    def _twice(self, at: int) -> str:
        return (
            f"{type(self._members[at]).__name__} (number {at} of the list) stepped twice, and "
            f"{self._names(stepped=False)} not yet. One control for several optimizers needs each "
            "of them to step once in every step. If they take turns, use one lb.attach for each, "
            "with the parameters of the others frozen."
        )

    def _names(self, *, stepped: bool) -> str:
        """Return the optimizers that have stepped, or those that have not."""
        return ", ".join(
            f"{type(member).__name__} (number {number})"
            for number, member in enumerate(self._members)
            if (number in self._stepped) == stepped
        )
