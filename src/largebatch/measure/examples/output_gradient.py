"""Reports the gradient of a module call's output, and returns gradients of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from largebatch.measure.examples.layer import SavedTensors
from largebatch.measure.examples.part import Call

Begin = Callable[[Call], None]
Arrive = Callable[[Call, SavedTensors, Any], Mapping[str, Tensor]]
"""A call begins to live; its output's gradient came, and gives gradients by parameter."""


class OutputGradient(torch.autograd.Function):
    """Return a module's outputs unchanged; in the backward, call `arrive` with their gradients.

    The outputs' gradients pass unchanged, too. For parameters that the module itself was run
    without, `arrive` returns the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, arrive: Arrive, call: Call, count: tuple[int, int], *tensors: Tensor
    ) -> Any:
        ctx.arrive, ctx.call, ctx.count = arrive, call, count
        ctx.save_for_backward(*tensors[sum(count) :])
        # A view would forbid nn.ReLU(inplace=True) after a convolution, so known layers, none of
        # which keeps its output for its backward, give the same memory as another tensor.
        if count[0] == 1:
            return tensors[0].view_as(tensors[0]) if call.layer.keeps_output else tensors[0].data
        return tuple(x.view_as(x) for x in tensors[: count[0]])

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> Any:
        """Passes the gradients of the outputs on, and returns those of the parameters replaced."""
        with torch.no_grad():
            kept = ctx.saved_tensors
            delta = deltas[0] if len(deltas) == 1 else deltas
            gradients = ctx.arrive(ctx.call, kept, delta)
        found = [gradients[n] for n in ctx.call.owner.parameters] if ctx.call.replaced else []
        return (None, None, None, *deltas, *found, *[None] * len(kept))
