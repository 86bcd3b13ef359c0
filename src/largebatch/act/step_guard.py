"""Restore the learning rate after an exception in `optimizer.step`, and detect the outermost step.

Torch calls no hook when a step raises an exception. Therefore the instance's own `step` is wrapped,
in the same way as torch's `LRScheduler` wraps it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch.optim import Optimizer


class StepGuard:
    """Wrap `optimizer.step` to notice exceptions and nested steps; `close` removes the wrapper.

    If a class's `step` calls `super().step()`, torch runs the step's hooks more than once. The
    pre-hook calls `enter` and the post-hook calls `leave`; both return True for the outermost call
    only.

    If another program calls a `step` that it had stored before the guard was installed, the guard
    does not see the exception. If an exception interrupted a step unseen, `optimizer.state_dict()`
    calls `abandon`, and `reset` forgets the step.

    This class is mutable: it counts the nested steps.

    Args:
        optimizer: Optimizer whose `step` is wrapped.
        abandon: Function called when a step raised an exception, before the exception reaches the
            caller.
    """

    def __init__(self, optimizer: Optimizer, abandon: Callable[[], None]) -> None:
        self._optimizer = optimizer
        self._abandon: Callable[[], None] | None = abandon
        self._depth, self._running = 0, False
        self._own_step = vars(optimizer).get("step")
        inner = optimizer.step

        # LRScheduler marks a step that it has wrapped with an attribute, and `wraps` copies this
        # attribute. LRScheduler requires a bound method, and GradScaler reads the signature.
        @functools.wraps(inner.__func__ if inspect.ismethod(inner) else inner)
        def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            return self._run(inner, args, kwargs)

        self._step = MethodType(step, optimizer)
        optimizer.step = self._step  # type: ignore[method-assign]
        self._saving = optimizer.register_state_dict_pre_hook(self._before_saving)

    def enter(self) -> bool:
        """Count a step that begins; return whether this step is the outermost one."""
        self._depth += 1
        return self._depth == 1 or not self._may_be_nested()

    def leave(self) -> bool:
        """Count a step that ends; return whether this step is the outermost one."""
        self._depth -= 1
        return self._depth == 0 or not self._may_be_nested()

    def reset(self) -> None:
        """Forget an interrupted step; called between two steps."""
        self._depth = 0

    def close(self) -> None:
        """Restore the optimizer's own `step`.

        If another program has wrapped the guard, the guard stays below that wrapper and does
        nothing.
        """
        self._abandon = None
        self._saving.remove()
        if vars(self._optimizer).get("step") is not self._step:
            return
        if self._own_step is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._own_step  # type: ignore[method-assign]

    def _run(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._abandon is None:
            return inner(*args, **kwargs)
        self._depth, self._running = 0, True
        try:
            return inner(*args, **kwargs)
        except BaseException:
            if self._abandon is not None:
                self._abandon()
            raise
        finally:
            self._depth, self._running = 0, False

    def _may_be_nested(self) -> bool:
        """Return whether one step may run inside another step.

        If the guard does not wrap the running step, the depth counter may also come from an
        interrupted step, and nested steps are possible only if the `step` methods of several
        classes call the hooks.
        """
        steps = (vars(kind).get("step") for kind in type(self._optimizer).__mro__)
        hooked = [step for step in steps if inspect.isfunction(step) and "hooked" in vars(step)]
        return self._running or len(hooked) > 1

    def _before_saving(self, optimizer: Optimizer) -> None:
        if self._depth and not self._running and self._abandon is not None:
            self._depth = 0
            self._abandon()
