"""Treat several optimizers of one model as one optimizer, which a single control drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch.optim import Optimizer

from largebatch.act.prepared import bare_optimizer


class JointOptimizers:
    """Show the parameter groups of several optimizers as the parameter groups of one optimizer.

    A step of the control begins with the first optimizer that steps, and ends when each optimizer
    has stepped once. `JointOptimizers` does not step the optimizers itself.

    Args:
        members: Optimizers, in the order in which they were given.
    """

    def __init__(self, members: Sequence[Optimizer]) -> None:
        self.members = tuple(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all member optimizers in order, as the members' own dictionaries."""
        return [group for member in self.members for group in member.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all member optimizers."""
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)


def joined(optimizer: Optimizer | Sequence[Optimizer]) -> Optimizer:
    """Return a single optimizer without accelerate's wrapper, or several as one `JointOptimizers`.

    Raises:
        ValueError: The list is empty, an optimizer is listed twice, or two optimizers share a
            parameter.
    """
    if isinstance(optimizer, (list, tuple)):
        members = [bare_optimizer(one) for one in optimizer]
        _check(members)
        if len(members) > 1:
            return cast(Optimizer, JointOptimizers(members))
        return cast(Optimizer, members[0])
    return cast(Optimizer, bare_optimizer(optimizer))


def members_of(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """Return the optimizers that step: the members of a `JointOptimizers`, or `optimizer`
    itself.
    """
    one: object = optimizer
    return one.members if isinstance(one, JointOptimizers) else (optimizer,)


def optimizer_names(optimizer: Optimizer) -> str:
    """Return the class names of the optimizers that step, joined by " + ".

    >>> import torch
    >>> optimizer_names(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    'SGD'
    """
    return " + ".join(type(member).__name__ for member in members_of(optimizer))


def _check(members: Sequence[Any]) -> None:
    if not members:
        raise ValueError(
            "The list of optimizers is empty. Pass one optimizer, or a list such as [adam, muon]."
        )
    owner: dict[Any, int] = {}
    for at, member in enumerate(members):
        if not isinstance(member, Optimizer):
            raise ValueError(
                f"Element {at} of the list of optimizers is a {type(member).__name__}, not a "
                "torch optimizer. Pass torch optimizers: lb.attach(model, [adam, muon], rule, "
                "...)."
            )
        for group in member.param_groups:
            for parameter in group["params"]:
                other = owner.setdefault(parameter, at)
                if other != at:
                    shape = tuple(parameter.shape)
                    raise ValueError(
                        f"Optimizers {other} ({type(members[other]).__name__}) and {at} "
                        f"({type(member).__name__}) share a parameter of shape {shape}, which "
                        "would therefore move twice per step. Pass each parameter to only one "
                        "optimizer."
                    )
