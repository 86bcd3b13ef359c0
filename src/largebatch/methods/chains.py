"""How the methods put their rules together."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.core.number_checks import is_count
from largebatch.core.rule import Chain, Rule, chain
from largebatch.rules import ClampBatch, Every, LinearScaling, SqrtScaling

EARLY = 10
"""Steps at the start of a run that are all measured, at most."""

SQRT, LINEAR = SqrtScaling(), LinearScaling()
"""How the learning rate may follow the batch in hand."""


def check_counts(method: str, *, every: int, max: int | None = None) -> None:
    """Refuse steps or samples that are no counts.

    Args:
        method: its name in `lb.methods`.
        every: optimizer steps from one measurement to the next.
        max: largest batch in samples; None for no bound.

    Raises:
        ValueError: naming the method and its argument.
    """
    if not is_count(every, least=1):
        raise refused(method, "every", every, "a whole number of optimizer steps, 1 or more", "10")
    if max is not None and not is_count(max, least=1):
        raise refused(method, "max", max, "a whole number of samples, 1 or more, or None", "4096")


def refused(method: str, name: str, value: object, what: str, usual: str) -> ValueError:
    """Return the error of an argument of a method.

    >>> print(refused("adasgd", "eta", 0, "a number above 0", "1.0"))
    lb.methods.adasgd(eta=0) was given, but eta is a number above 0. lb.methods.adasgd(eta=1.0)
    """
    call = f"lb.methods.{method}"
    return ValueError(
        f"{call}({name}={value!r}) was given, but {name} is {what}. {call}({name}={usual})"
    )


def spaced(rule: Rule, every: int) -> Rule:
    """Return the rule, which measures in every so-many-th optimizer step.

    The first steps are all measured, as many or ten at most: four measurements are needed before
    anything is decided.
    """
    return rule if every == 1 else Every(rule, steps=every, first=min(every, EARLY))


def bounded(rule: Rule, *, max: int | None = None, then: Sequence[Rule | None]) -> Chain:
    """Return the rule, a bound on its batch in samples unless it is None, and the rules that are
    not None after it."""
    cap = () if max is None else (ClampBatch(max=max),)
    return chain(rule, *cap, *[one for one in then if one is not None])
