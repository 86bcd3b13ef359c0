"""Detect gradients that change between the backward calls of one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

PER_GROUP, IN_ALL = 3, 24
"""Number of gradients that are compared, per parameter group and over all groups.

Comparing all 293 gradients of one model would take 116 microseconds each time.
"""

CLEARED = (
    "The gradient was cleared between two backward calls of one step, so the gradients of the "
    "earlier micro-batches are lost. Call optimizer.zero_grad() only after optimizer.step(). If "
    "you cleared the gradients on purpose, as after the first backward call of SAM, call "
    "control.drop() after the first backward call."
)
CHANGED = (
    "The gradient was changed between two backward calls of one step, so the optimizer would not "
    "get the sum of the measured gradients. Clip or scale the gradient once, after the last "
    "backward call. To compute the gradient's norm without changing the gradient, use "
    "torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]). If the optimizer must "
    "not get the gradients of an earlier backward call, call control.drop() after that backward "
    "call."
)


class AccumulatedGradients:
    """Hold some of the accumulated gradients, and detect whether they change.

    A gradient is unchanged if it is the same tensor with the same `_version`, or a new tensor with
    the same values. Values of gradients are compared because DistributedDataParallel moves
    gradients to new buckets once, which keeps their values. Changes through `grad.data` are not
    detected, because they do not raise `_version`.

    Mutable: holds gradients between two backward calls.

    Args:
        groups: The optimizer's parameter groups. The first, the middle and the last trainable
            parameter of each group are compared.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self._parameters: list[Tensor] = []
        for group in groups:
            trained = [p for p in group["params"] if p.requires_grad]
            self._parameters += _some(trained)
        self._parameters = self._parameters[:IN_ALL]
        self.forget()

    def forget(self) -> None:
        """Forget all remembered gradients at the beginning of a training step."""
        self._held: list[tuple[Tensor, Tensor | None, int]] = []

    def note(self) -> None:
        """Remember the gradients after a backward call."""
        self._held = [
            (parameter, gradient, -1 if gradient is None else gradient._version)
            for parameter in self._parameters
            for gradient in (parameter.grad,)
        ]

    def change(self) -> str | None:
        """Return how the gradients changed since the last `note`; None if no gradient changed."""
        for parameter, gradient, version in self._held:
            now = parameter.grad
            if now is gradient and (now is None or now._version == version):
                continue
            if gradient is not None and gradient._version == version and _equal(gradient, now):
                continue
            return CHANGED if now is not None and bool(now.any()) else CLEARED
        return None

    @property
    def changed(self) -> bool:
        """Return whether the gradients may differ from the last `note`, without reading values."""
        return any(
            parameter.grad is not gradient
            or (gradient is not None and gradient._version != version)
            for parameter, gradient, version in self._held
        )


def _equal(before: Tensor, now: Tensor | None) -> bool:
    if now is None or before.is_sparse or now.is_sparse:
        return False
    return torch.allclose(before, now, rtol=0.0, atol=0.0, equal_nan=True)


def _some(tensors: Sequence[Tensor]) -> list[Tensor]:
    if len(tensors) <= PER_GROUP:
        return list(tensors)
    return [tensors[0], tensors[len(tensors) // 2], tensors[-1]]
