"""Combine rules into the chains that the methods return."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.core.number_checks import is_count
from largebatch.core.rule import Chain, Rule, chain
from largebatch.rules import ClampBatch, Every, LinearScaling, SqrtScaling

EARLY = 10
"""Largest number of steps at the start of a run that are all measured."""

SQRT, LINEAR = SqrtScaling(), LinearScaling()
"""Rules by which the learning rate follows the current batch size."""


def check_counts(method: str, *, every: int, max: int | None = None) -> None:
    """Check that `every` and `max` are whole numbers of at least 1.

    Args:
        method: Name of the method in `lb.methods`.
        every: Optimizer steps from one measurement to the next.
        max: Largest batch size in samples; None for no limit.

    Raises:
        ValueError: If `every` or `max` is not valid; the message names the method and the argument.
    """
    if not is_count(every, least=1):
        raise argument_error(
            method, "every", every, "a whole number of optimizer steps, 1 or more", "10"
        )
    if max is not None and not is_count(max, least=1):
        raise argument_error(
            method, "max", max, "a whole number of samples, 1 or more, or None", "4096"
        )


def argument_error(method: str, name: str, value: object, what: str, usual: str) -> ValueError:
    """Return the error for a wrong argument of a method.

    >>> print(argument_error("legw", "x", 0, "1 or more", "2.0"))
    lb.methods.legw(x=0) was given, but x must be 1 or more. Example: lb.methods.legw(x=2.0)

    Args:
        method: Name of the method in `lb.methods`.
        name: Name of the argument.
        value: Value of the argument.
        what: Description of the allowed values.
        usual: Valid value, as text, for the example.
    """
    call = f"lb.methods.{method}"
    return ValueError(
        f"{call}({name}={value!r}) was given, but {name} must be {what}. "
        f"Example: {call}({name}={usual})"
    )


def spaced(rule: Rule, every: int) -> Rule:
    """Return a rule that measures only in every `every`-th optimizer step.

    The first `every` steps, but at most ten, are all measured. At least four measurements are
    necessary before the rule decides anything.
    """
    return rule if every == 1 else Every(rule, steps=every, first=min(every, EARLY))


def bounded(rule: Rule, *, max: int | None = None, then: Sequence[Rule | None]) -> Chain:
    """Return a chain: the given rule, then a limit on the batch size, then further rules.

    Args:
        rule: Rule or chain that may propose a batch size.
        max: Largest batch size in samples; None for no limit.
        then: Rules after the limit; a None in place of a rule is left out.
    """
    cap = () if max is None else (ClampBatch(max=max),)
    return chain(rule, *cap, *[one for one in then if one is not None])
