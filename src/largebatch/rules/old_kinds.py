"""The kinds of rules and factors that earlier versions wrote into records and checkpoints.

Each is a class or a function that takes the fields of the old class by keyword and returns today's
value, which decides the same. A kind stays here for ever. A class that still exists is here if the
fields of an earlier version meant something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import wraps
from types import MappingProxyType
from typing import Any, Literal

from largebatch.core.codec import Maker
from largebatch.core.rule import Rule
from largebatch.rules.auto_warm_up.rule import BACKOFF, AutoWarmUp
from largebatch.rules.factors import Factor, HoldThenDecay
from largebatch.rules.noise_scale import control_by_cosine, control_by_diversity

ABSENT = math.nan
"""In place of a field that an earlier version did not have."""


def auto_warm_up(
    *,
    low: float,
    high: float,
    fraction: float,
    growth: Literal["exponential", "linear"],
    decay: Factor,
    cooldown: float,
    after: Rule,
    confidence: float,
    patience: int,
    backoff: float | None,
    paper: bool,
    backoff_at_high: float | None = ABSENT,
) -> AutoWarmUp:
    """Return the warm-up of these fields.

    Version 0.1 had no `backoff_at_high`: it treated the end at `high` as any other, and ignored
    `backoff` if `paper` was given.

    Args:
        low, high, ...: the fields of `AutoWarmUp`.
    """
    of_0_1 = backoff_at_high is not None and math.isnan(backoff_at_high)
    return AutoWarmUp(
        low=low,
        high=high,
        fraction=fraction,
        growth=growth,
        decay=decay,
        cooldown=cooldown,
        after=after,
        confidence=confidence,
        patience=patience,
        backoff=None if of_0_1 and (paper or backoff == BACKOFF) else backoff,
        paper=paper,
        backoff_at_high=None if of_0_1 else backoff_at_high,
    )


@wraps(auto_warm_up)
def resumed_auto_warm_up(**fields: Any) -> AutoWarmUp:
    """Return the warm-up that today's script builds where version 0.1 wrote these fields."""
    rule = auto_warm_up(**fields)
    if "backoff_at_high" in fields:
        return rule
    return replace(rule, backoff_at_high=AutoWarmUp().backoff_at_high)


OLD_KINDS: Mapping[str, Maker] = MappingProxyType(
    {
        "After": HoldThenDecay,
        "AutoWarmUp": auto_warm_up,
        "CosineTest": control_by_cosine,
        "GradientDiversity": control_by_diversity,
    }
)
"""Old class name -> what makes today's value of its fields."""

RESUMED_KINDS: Mapping[str, Maker] = MappingProxyType({"AutoWarmUp": resumed_auto_warm_up})
"""The same for a run that is resumed by its script, which builds today's rule: what an earlier
version did otherwise is not asked of it."""
