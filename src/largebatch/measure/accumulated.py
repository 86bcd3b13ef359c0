"""Notices gradients that change between the backward calls of a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

PER_GROUP, IN_ALL = 3, 24
"""How many gradients are looked at, of each parameter group and over all groups. All 293 of a model
would cost 116 microseconds each time."""

CLEARED = (
    "The gradient was cleared between two backward calls of one step, so the micro-batches before "
    "it are lost. Call optimizer.zero_grad() after optimizer.step() alone. If the lost pass was "
    "meant, as the first pass of SAM is, call control.drop() after it."
)
CHANGED = (
    "The gradient was changed between two backward calls of one step, so the optimizer would not "
    "get the sum of what was measured. Clip or scale it once, after the last backward. For a norm "
    "without a change use torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]). If "
    "the pass before was not meant for the optimizer, call control.drop() after it."
)


class AccumulatedGradients:
    """Holds some of the accumulated gradients, and finds out whether they are still as they were.

    A gradient is the same if it is the same tensor with the same `_version`, or a new tensor with
    the same values: DistributedDataParallel moves gradients to new buckets once. Changes through
    `grad.data` are not seen, since they do not count as a version.

    Mutable: holds gradients between two backward calls.

    Args:
        groups: the optimizer's parameter groups, of which the first, the middle and the last
            trainable parameter are looked at.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self._parameters: list[Tensor] = []
        for group in groups:
            trained = [p for p in group["params"] if p.requires_grad]
            self._parameters += _some(trained)
        self._parameters = self._parameters[:IN_ALL]
        self.forget()

    def forget(self) -> None:
        """Begin a step, whose gradients are not there yet."""
        self._held: list[tuple[Tensor, Tensor | None, int]] = []

    def note(self) -> None:
        """Note the gradients after a backward."""
        self._held = [
            (parameter, gradient, -1 if gradient is None else gradient._version)
            for parameter in self._parameters
            for gradient in (parameter.grad,)
        ]

    def change(self) -> str | None:
        """Return what happened to the gradients since the last note; None if they are the same."""
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
        """Return whether the gradients differ from the last note; reads no value."""
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
