"""Check that the gradients of the examples add up to the gradients of the parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch.measure.examples.part import Call, Part
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.parameters import Parameters
from largebatch.measure.squares import squared_norm

CANCELLED = 100.0
"""Allowed error of a sum of n contributions, in units of eps * n * their root mean square."""

INSTEAD = "or split the batch into two or more micro-batches and use meter=lb.Meter(model)."

DO_NOT_ADD_UP = (
    "The gradients of single examples do not add up to the gradient of the parameter {name}. "
    "Possible causes: the loss has a term that does not depend on the model's output (for an L2 "
    "penalty use the optimizer's weight_decay=...), the first dimension is not the samples, a "
    "module draws random numbers (attention with dropout), a part of the model is checkpointed "
    "with use_reentrant=True, or the parameter is used outside its module."
)


class Check:
    """Check the contributions of the examples against the gradients of the parameters.

    In the first backward call, the sum of the examples' contributions to each parameter is compared
    with the parameter's gradient. In each backward call, every parameter with a gradient must have
    contributions of examples.

    Mutable: holds the gradients of the current backward call.

    Attributes:
        values: Whether the values of the current backward call are compared.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._seen: dict[int, Tensor | None] = {}
        self.values = True

    def clear(self) -> None:
        """Forget the gradients of the last backward call, because a new one begins."""
        self._seen = {}

    def see(self, index: int, gradient: Tensor) -> None:
        """Note the gradient of a parameter."""
        # The gradient is cloned, since holding it would make autograd copy it for `.grad`.
        self._seen[index] = gradient.clone() if self.values else None

    def fits(self, part: Part, call: Call) -> None:
        """Check that a module's call has as many examples as the current backward call.

        Raises:
            ExamplesRefused: The module's call and the backward call have different numbers of
                examples, or a parameter got another gradient after the contributions of its
                examples were added up.
        """
        if part.rows != call.rows:
            raise ExamplesRefused(
                f"The module {call.owner.name!r} was called with {call.rows} examples, but other "
                f"modules were called with {part.rows} examples in the same backward call. Pass "
                "all examples of a micro-batch to the model at once, as the first dimension of its "
                f"first argument, {INSTEAD}"
            )
        if call.owner.group in part.finished:
            raise ExamplesRefused(
                f"A parameter of the module {call.owner.name!r} got another gradient after the "
                "gradients of its examples were added up, as in reentrant checkpointing with tied "
                f"weights. Use checkpoint(use_reentrant=False), {INSTEAD}"
            )

    def compare(self, part: Part) -> None:
        """Check the examples' contributions at the end of a backward call.

        Raises:
            ExamplesRefused: The gradients of the examples do not add up to the gradient of a
                parameter, which the message names.
        """
        seen, values = self._seen, self.values
        self._seen = {}
        if not seen:
            return
        for index, gradient in seen.items():
            if index not in part.covered:
                raise ExamplesRefused(
                    f"The parameter {self._parameters.names[index]} got a gradient that does not "
                    "come from a module's call. The loss uses the parameter directly, for example "
                    "in a penalty on the weights, or an operation on the whole batch uses it. Use "
                    f"the parameter in a module of its own that gets the examples, {INSTEAD}"
                )
            if values and gradient is not None and _differs(part, index, gradient):
                name = self._parameters.names[index]
                raise ExamplesRefused(DO_NOT_ADD_UP.format(name=name))
        self.values = False


def _differs(part: Part, index: int, gradient: Tensor) -> bool:
    found = part.gradients.get(index)
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    if found is None:
        return bool(squared_norm(gradient) > 0)
    limit = 0.05 if part.coarse else 1e-3
    off = squared_norm(found - gradient.to(found.dtype))
    eps = torch.finfo(found.dtype).eps
    # If the examples' contributions cancel, as for a bias before batch normalization, only rounding
    # errors remain.
    floor = eps**2 * (gradient.numel() + CANCELLED**2 * part.parts * part.sizes[index])
    return bool(torch.isfinite(off) & (off > limit**2 * squared_norm(gradient) + floor))
