"""Report the gradient of a module's output, and return gradients of the module's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from largebatch.measure.examples.deferred_errors import DeferredErrors
from largebatch.measure.examples.layer import SavedTensors
from largebatch.measure.examples.part import Call
from largebatch.measure.examples.refused import ExamplesRefused

Begin = Callable[[Call], None]
Arrive = Callable[[Call, SavedTensors, Any], Mapping[str, Tensor] | None]
"""Function that receives a module call, its kept input tensors and its output's gradient.

The function returns the gradients of the module's parameters by name, or None.
"""


class OutputGradient(torch.autograd.Function):
    """Return a module's output unchanged, and call `arrive` with the output's gradient.

    The function changes neither the output nor the output's gradient. `arrive` returns the
    gradients of parameters that required no gradient during the module's own forward.
    """

    @staticmethod
    def forward(ctx: Any, arrive: Arrive, call: Call, output: Tensor, *tensors: Tensor) -> Tensor:
        ctx.arrive, ctx.call = arrive, call
        ctx.set_materialize_grads(False)
        replaced = len(call.owner.parameters) if call.replaced else 0
        ctx.save_for_backward(*tensors[replaced:])
        # If the result were a view, nn.ReLU(inplace=True) after a convolution would raise an error.
        # No known layer keeps its output for the backward call, so the result is another tensor
        # with the same memory.
        return output.data

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None) -> Any:
        """Return the output's gradient, and the parameters' gradients that `arrive` computes."""
        kept = ctx.saved_tensors
        names = ctx.call.owner.parameters if ctx.call.replaced else ()
        gradients: Mapping[str, Tensor] = {}
        if delta is not None:
            with torch.no_grad():
                gradients = ctx.arrive(ctx.call, kept, delta) or {}
        found = [gradients.get(name) for name in names]
        return (None, None, delta, *found, *[None] * len(kept))


@dataclass(eq=False, slots=True, weakref_slot=True)
class HeldInput:
    """Hold the input of an unknown module's call until the training step has ended.

    Mutable: the method `release` discards the input.
    """

    tensors: SavedTensors
    versions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.versions = tuple([x._version for x in self.tensors])

    def release(self) -> None:
        """Discard the input tensors, which the graph would keep as long as the loss exists."""
        self.tensors = ()

    def intact(self) -> bool:
        """Return whether no input tensor was overwritten since the module call."""
        return self.versions == tuple([x._version for x in self.tensors])


def watch_outputs(
    outputs: Sequence[Tensor],
    call: Call,
    held: HeldInput,
    *,
    arrive: Arrive,
    errors: DeferredErrors,
) -> None:
    """Call `arrive` when the gradients of all outputs have been computed.

    The graph is not changed. So autograd may keep the outputs, the model may overwrite the outputs
    in place, and the loss may leave outputs out.
    """

    def hook(deltas: Sequence[Tensor | None]) -> None:
        if not held.tensors or all(delta is None for delta in deltas):
            return
        if not held.intact():
            raise ExamplesRefused(
                f"The input of the module {call.owner.name!r} was overwritten before the backward "
                "call, which needs the input for the examples' gradients. Use an operation that is "
                "not in place, or measure micro-batches instead: meter=lb.Meter(model)."
            )
        some = next(delta for delta in deltas if delta is not None)
        pairs = zip(deltas, shapes, strict=True)
        given = [some.new_zeros(shape) if delta is None else delta for delta, shape in pairs]
        with torch.no_grad():
            arrive(call, held.tensors, given[0] if len(given) == 1 else tuple(given))

    shapes = [x.shape for x in outputs]
    register_multi_grad_hook(outputs, errors.guard(hook))
