"""Read the rules and factors that earlier versions wrote into records and checkpoints.

Each entry of the tables is a class or a function. Each class or function takes the fields of the
old class by keyword, and returns a value of today that decides the same. An entry is never removed
from the tables. A class that still exists has an entry if its fields meant something else in an
earlier version.
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
"""Value of a field that an earlier version did not have."""


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
    """Return the warm-up that an earlier version wrote with the given fields.

    Version 0.1 had no `backoff_at_high`: `backoff` also applied to a warm-up that reached `high`,
    and `backoff` was ignored if `paper` was True.

    Args:
        low, high, ...: Fields of `AutoWarmUp`.
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
    """Return the warm-up that the same script builds today, from fields that version 0.1 wrote."""
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
"""Map of old class names to a class or function that builds today's value from the old fields."""

RESUMED_KINDS: Mapping[str, Maker] = MappingProxyType({"AutoWarmUp": resumed_auto_warm_up})
"""Map of old class names to a function for a run that is resumed. The script that resumes a run
builds today's rule, so the function ignores the differences between the earlier version and
today's version."""
