"""What `Lamb`, `Lars` and `AdaGradNorm` share: parameters in buckets, their precision, their saved
state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Parameters that one sequence of operations moves: of one group, device, type and kind.

    Mutable: `tensors` and `scalars` add to the parameters' states.

    Args:
        dtype: of states, norms and updates: float32, or float64 for parameters in float64.
        layers: whether all have two or more dimensions; else none has.
        parameters, gradients, states: one of each for each parameter; gradients in `dtype`.
    """

    dtype: torch.dtype
    layers: bool
    parameters: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def tensors(self, name: str) -> list[Tensor]:
        """The state of that name, in each parameter's shape; zeros where there is none yet."""
        for parameter, state in zip(self.parameters, self.states, strict=True):
            if name not in state:
                state[name] = torch.zeros_like(parameter, dtype=self.dtype)
        return [state[name] for state in self.states]

    def scalars(self, name: str) -> list[Tensor]:
        """The state of that name, a number on the device; 0 where there is none yet."""
        for parameter, state in zip(self.parameters, self.states, strict=True):
            if name not in state:
                state[name] = torch.zeros((), dtype=self.dtype, device=parameter.device)
        return [state[name] for state in self.states]

    def norms(self, tensors: list[Tensor]) -> Tensor:
        """The norm of each tensor, `[parameters]`."""
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=self.dtype))

    def ones(self) -> Tensor:
        """A ratio of 1 for each parameter, `[parameters]`."""
        device = self.parameters[0].device
        return torch.ones(len(self.parameters), dtype=self.dtype, device=device)

    def subtract(self, update: list[Tensor], *, times: Tensor) -> None:
        """Moves each parameter by its update times its number, rounded once."""
        torch._foreach_addcmul_(self.parameters, update, times.unbind(), value=-1)


class LayerwiseOptimizer(Optimizer, ABC):
    """An optimizer that moves buckets of parameters, with nothing read by the host.

    Mutable: steps move the parameters and their states.
    """

    @abstractmethod
    def _check(self, group: Mapping[str, Any]) -> None:
        """Refuses a group's hyper-parameters."""

    def _look(self, work: Sequence[tuple[Mapping[str, Any], Bucket]]) -> None:
        """Looks at all groups' buckets before the first of them moves."""

    @abstractmethod
    def _move(self, group: Mapping[str, Any], bucket: Bucket) -> None:
        """Takes one step with the bucket's parameters."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, whose options default to those of the optimizer.

        Raises:
            ValueError: a hyper-parameter outside of its range.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            What the closure returned; None without one.

        Raises:
            RuntimeError: a sparse or a complex gradient; nothing was moved then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, bucket) for group in self.param_groups for bucket in self._buckets(group)]
        self._look(work)
        for group, bucket in work:
            self._move(group, bucket)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a `state_dict`, whose tensors are copied.

        Raises:
            ValueError: a state of other parameter groups.
        """
        given: list[dict[str, Any]] = []

        def keep(_: Optimizer, state: dict[str, Any]) -> None:
            given.append(state)  # last of all hooks: the state that is loaded

        hook = self.register_load_state_dict_pre_hook(keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        # torch has rounded the states to the parameters' type, and left the steps where they were
        names = [name for group in given[-1]["param_groups"] for name in group["params"]]
        owned = [p for group in self.param_groups for p in group["params"]]
        for name, p in zip(names, owned, strict=True):
            for key, value in given[-1]["state"].get(name, {}).items():
                self.state[p][key] = value.to(device=p.device, dtype=_wide(p), copy=True)

    def _buckets(self, group: Mapping[str, Any]) -> list[Bucket]:
        """The group's parameters that have a gradient."""
        found: dict[tuple[torch.device, torch.dtype, bool], Bucket] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            _check_gradient(p.grad, optimizer=type(self).__name__)
            key = (p.device, p.dtype, p.dim() >= 2)
            bucket = found.setdefault(key, Bucket(dtype=_wide(p), layers=key[-1]))
            bucket.parameters.append(p)
            bucket.gradients.append(p.grad.to(bucket.dtype))
            bucket.states.append(self.state[p])
        return list(found.values())


def rate(group: Mapping[str, Any]) -> float | Tensor:
    """The group's learning rate, a tensor as a number on its device."""
    lr: float | Tensor = group["lr"]
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def is_rate(lr: float | Tensor) -> bool:
    """Whether that may be a learning rate; the value in a tensor is not read.

    >>> is_rate(0.1), is_rate(torch.tensor(0.1)), is_rate(-0.1)
    (True, True, False)
    """
    return lr.numel() == 1 if isinstance(lr, Tensor) else 0.0 <= lr < math.inf


def check_value(fine: bool, what: str, *, got: object, paste: str) -> None:
    """Refuses a hyper-parameter.

    Raises:
        ValueError: not `fine`.
    """
    if not fine:
        raise ValueError(f"{what}; got {got!r}. Use lb.optim.{paste}.")


def _wide(parameter: Tensor) -> torch.dtype:
    # in bfloat16 an average over 1000 steps stops moving: its addends are below half a unit of its
    # last digit; in float16 the square of a gradient of 1e-4 is 0
    return torch.float64 if parameter.dtype is torch.float64 else torch.float32


def _check_gradient(gradient: Tensor, *, optimizer: str) -> None:
    if gradient.layout is not torch.strided:
        raise RuntimeError(
            f"{optimizer} needs every element of a gradient for its norm, and got a sparse one. "
            "Make it dense: torch.nn.Embedding(..., sparse=False)."
        )
    if gradient.is_complex():
        raise RuntimeError(
            f"{optimizer} moves real parameters, and got a complex gradient. Hold real and "
            "imaginary parts: torch.nn.Parameter(torch.view_as_real(weight))."
        )
