"""Several optimizers over one model, which one control steers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch.optim import Optimizer

from largebatch.act.prepared import bare_optimizer


class JointOptimizers:
    """Shows the parameter groups of several optimizers as those of one.

    A step of the control begins with the first optimizer that steps, and ends when each of them has
    stepped once. It takes no step itself.

    Args:
        members: the optimizers, in the order given.
    """

    def __init__(self, members: Sequence[Optimizer]) -> None:
        self.members = tuple(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members, in their order; each is the member's own."""
        return [group for member in self.members for group in member.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all members."""
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)


def joined(optimizer: Optimizer | Sequence[Optimizer]) -> Optimizer:
    """Return one optimizer as it is, bare, and several as `JointOptimizers`.

    Raises:
        ValueError: no optimizer, one that is given twice, or two that share a parameter.
    """
    if isinstance(optimizer, (list, tuple)):
        members = [bare_optimizer(one) for one in optimizer]
        _check(members)
        if len(members) > 1:
            return cast(Optimizer, JointOptimizers(members))
        return cast(Optimizer, members[0])
    return cast(Optimizer, bare_optimizer(optimizer))


def members_of(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """Return the optimizers that step: the members, or the optimizer itself."""
    one: object = optimizer
    return one.members if isinstance(one, JointOptimizers) else (optimizer,)


def optimizer_names(optimizer: Optimizer) -> str:
    """Return the class names of the optimizers that step.

    >>> import torch
    >>> optimizer_names(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    'SGD'
    """
    return " + ".join(type(member).__name__ for member in members_of(optimizer))


def _check(members: Sequence[Any]) -> None:
    if not members:
        raise ValueError("No optimizer was given. Pass one, or a list: [adam, muon].")
    owner: dict[Any, int] = {}
    for at, member in enumerate(members):
        if not isinstance(member, Optimizer):
            raise ValueError(
                f"Optimizer {at} of the list is a {type(member).__name__}. Pass torch optimizers: "
                "lb.attach(model, [adam, muon], rule, ...)."
            )
        for group in member.param_groups:
            for parameter in group["params"]:
                other = owner.setdefault(parameter, at)
                if other != at:
                    shape = tuple(parameter.shape)
                    raise ValueError(
                        f"Optimizers {other} ({type(members[other]).__name__}) and {at} "
                        f"({type(member).__name__}) share a parameter of shape {shape}, so it "
                        "would move twice in a step. Give each parameter to one optimizer."
                    )
