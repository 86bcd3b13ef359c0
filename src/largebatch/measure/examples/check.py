"""Whether what was seen of the examples is the gradient that the parameters got."""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch.measure.examples.part import Call, Part
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.parameters import Parameters
from largebatch.measure.squares import squared_norm

CANCELLED = 100.0
"""What the sum of n contributions may be off, in roundings of their root mean square times n."""

INSTEAD = (
    "or split the batch into two or more micro-batches, which are measured without lb.PerExample()."
)

DO_NOT_ADD_UP = (
    "The gradients of single examples do not add up to the gradient of {name}. Possible causes: "
    "the loss has a term that does not come from the model's output (for an L2 penalty use the "
    "optimizer's weight_decay=...), the first dimension is not the samples, a module draws random "
    "numbers of its own (attention with dropout), a part of the model is checkpointed with "
    "use_reentrant=True, or the parameter is used outside of its module."
)


class Check:
    """Compares the sum of the examples' contributions with each parameter's gradient in the first
    backward, and in each one that every parameter with a gradient was seen.

    Mutable: holds the gradients of the backward in hand.

    Attributes:
        values: whether the backward in hand is compared by value.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._seen: dict[int, Tensor | None] = {}
        self.values = True

    def clear(self) -> None:
        """A backward begins."""
        self._seen = {}

    def see(self, index: int, gradient: Tensor) -> None:
        """A parameter got this gradient."""
        # one that is held here would be copied on its way to the parameter
        self._seen[index] = gradient.clone() if self.values else None

    def fits(self, part: Part, call: Call) -> None:
        """Checks that a call belongs to the examples of the backward in hand.

        Raises:
            ExamplesRefused: another number of examples, or a parameter that was finished already.
        """
        if part.rows != call.rows:
            raise ExamplesRefused(
                f"{call.owner.name} was called with {call.rows} examples in a backward of "
                f"{part.rows}. Give the model all of a micro-batch's examples at once, with the "
                f"examples as the first dimension of its first argument, {INSTEAD}"
            )
        if call.owner.group in part.finished:
            raise ExamplesRefused(
                f"A parameter of {call.owner.name} got another gradient when its examples had been "
                "added up already (reentrant checkpointing with tied weights does that). Use "
                f"checkpoint(use_reentrant=False), {INSTEAD}"
            )

    def compare(self, part: Part) -> None:
        """Checks a backward that is over.

        Raises:
            ExamplesRefused: naming the parameter.
        """
        seen, values = self._seen, self.values
        self._seen = {}
        if not seen:
            return
        for index, gradient in seen.items():
            if index not in part.covered:
                raise ExamplesRefused(
                    f"{self._parameters.names[index]} got a gradient that comes from no call of a "
                    "module: the loss uses it directly, as a penalty on the weights does, or an "
                    "operation on the whole batch does. Use it in a module of its own that gets "
                    f"the examples, {INSTEAD}"
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
    # contributions that cancel, as those of a bias before batch normalization, leave rounding alone
    floor = eps**2 * (gradient.numel() + CANCELLED**2 * part.parts * part.sizes[index])
    return bool(torch.isfinite(off) & (off > limit**2 * squared_norm(gradient) + floor))
