"""Share parameter buckets, precision and saved state between `Lamb`, `Lars` and `AdaGradNorm`."""

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
    """Hold parameters that are updated together, by the same sequence of operations.

    All parameters in a bucket have the same parameter group, device and dtype. Either all or none
    of the parameters in a bucket have two or more dimensions. `tensors` and `scalars` add entries
    to the parameters' states.

    Args:
        dtype: Type of states, norms and updates: float64 for float64 parameters, else float32.
        layers: Whether the parameters have two or more dimensions.
        parameters: Parameters of the bucket.
        gradients: Gradient of each parameter, in `dtype`.
        states: Optimizer state of each parameter.
    """

    dtype: torch.dtype
    layers: bool
    parameters: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def tensors(self, name: str) -> list[Tensor]:
        """Return the tensor `name` in each parameter's state. A missing tensor is filled with
        zeros.
        """
        for parameter, state in zip(self.parameters, self.states, strict=True):
            if name not in state:
                state[name] = torch.zeros_like(parameter, dtype=self.dtype)
        return [state[name] for state in self.states]

    def scalars(self, name: str) -> list[Tensor]:
        """Return the number `name` in each parameter's state. A missing number is set to 0."""
        for parameter, state in zip(self.parameters, self.states, strict=True):
            if name not in state:
                state[name] = torch.zeros((), dtype=self.dtype, device=parameter.device)
        return [state[name] for state in self.states]

    def norms(self, tensors: list[Tensor]) -> Tensor:
        """Return the norms of the tensors as one tensor of shape `[parameters]`."""
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=self.dtype))

    def ones(self) -> Tensor:
        """Return a ratio of 1 for each parameter, as one tensor of shape `[parameters]`."""
        device = self.parameters[0].device
        return torch.ones(len(self.parameters), dtype=self.dtype, device=device)

    def subtract(self, update: list[Tensor], *, times: Tensor) -> None:
        """Subtract `times` x `update` from each parameter, with one rounding."""
        torch._foreach_addcmul_(self.parameters, update, times.unbind(), value=-1)


class LayerwiseOptimizer(Optimizer, ABC):
    """Update parameters bucket by bucket, without reading any value from the device.

    `step` changes the parameters and their states.
    """

    @abstractmethod
    def _check(self, group: Mapping[str, Any]) -> None:
        """Raise an error if a hyper-parameter of a group is outside its range."""

    def _look(self, work: Sequence[tuple[Mapping[str, Any], Bucket]]) -> None:
        """Inspect the buckets of all groups before the first parameter changes."""

    @abstractmethod
    def _move(self, group: Mapping[str, Any], bucket: Bucket) -> None:
        """Update the parameters of one bucket."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group. Missing options get the optimizer's defaults.

        Raises:
            ValueError: A hyper-parameter is outside its range.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Function that computes the loss and the gradients again, or None.

        Returns:
            Result of the closure, or None if there is no closure.

        Raises:
            RuntimeError: A gradient is sparse or complex. No parameter was changed.
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
        """Restore a state that `state_dict` returned. The tensors of the state are copied.

        Raises:
            ValueError: The state and the optimizer have different parameter groups.
        """
        given: list[dict[str, Any]] = []

        def keep(_: Optimizer, state: dict[str, Any]) -> None:
            given.append(state)  # this hook runs last, so it gets the state that is loaded

        hook = self.register_load_state_dict_pre_hook(keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        # torch rounded the states to the parameters' dtype, and did not move `step` to the device
        names = [name for group in given[-1]["param_groups"] for name in group["params"]]
        owned = [p for group in self.param_groups for p in group["params"]]
        for name, p in zip(names, owned, strict=True):
            for key, value in given[-1]["state"].get(name, {}).items():
                self.state[p][key] = value.to(device=p.device, dtype=_wide(p), copy=True)

    def _buckets(self, group: Mapping[str, Any]) -> list[Bucket]:
        """Return the buckets of the group's parameters that have a gradient."""
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
    """Return the learning rate of a group. A tensor becomes a scalar tensor on the same device."""
    lr: float | Tensor = group["lr"]
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def is_rate(lr: float | Tensor) -> bool:
    """Return whether a value can be a learning rate. The value inside a tensor is not read.

    >>> is_rate(0.1), is_rate(torch.tensor(0.1)), is_rate(-0.1)
    (True, True, False)
    """
    return lr.numel() == 1 if isinstance(lr, Tensor) else 0.0 <= lr < math.inf


def check_value(fine: bool, what: str, *, got: object, paste: str) -> None:
    """Raise an error if a hyper-parameter is outside its range.

    Args:
        fine: Whether the value is valid.
        what: Condition for a valid value, for the error message.
        got: Value of the hyper-parameter.
        paste: Valid call, for the error message.

    Raises:
        ValueError: `fine` is False.
    """
    if not fine:
        raise ValueError(f"{what}, but {got!r} was given. Use lb.optim.{paste}.")


def _wide(parameter: Tensor) -> torch.dtype:
    # In bfloat16 an average over 1000 steps stops changing, because each addend is below half a
    # unit of the average's last digit. In float16 the square of a gradient of 1e-4 is 0.
    return torch.float64 if parameter.dtype is torch.float64 else torch.float32


def _check_gradient(gradient: Tensor, *, optimizer: str) -> None:
    if gradient.layout is not torch.strided:
        raise RuntimeError(
            f"{optimizer} does not support sparse gradients, but a parameter has a sparse "
            "gradient. Make the gradient dense: torch.nn.Embedding(..., sparse=False)."
        )
    if gradient.is_complex():
        raise RuntimeError(
            f"{optimizer} does not support complex gradients, but a parameter has a complex "
            "gradient. Store the real and imaginary parts of the parameter: "
            "torch.nn.Parameter(torch.view_as_real(weight))."
        )
