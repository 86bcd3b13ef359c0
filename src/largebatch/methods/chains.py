"""How the methods put their rules together."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.core.rule import Chain, Rule, chain
from largebatch.rules import ClampBatch, Every, LinearScaling, SqrtScaling

EARLY = 10
"""Steps at the start of a run that are all measured, at most."""

SQRT, LINEAR = SqrtScaling(), LinearScaling()
"""How the learning rate may follow the batch in hand."""


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
