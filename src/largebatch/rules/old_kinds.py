"""The kinds of rules and factors that earlier versions wrote into records and checkpoints.

Each is a class or a function that takes the fields of the old class by keyword and returns today's
value, which decides the same. A kind stays here for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from largebatch.core.codec import Maker
from largebatch.rules.factors import HoldThenDecay
from largebatch.rules.noise_scale import control_by_cosine, control_by_diversity

OLD_KINDS: Mapping[str, Maker] = MappingProxyType(
    {
        "After": HoldThenDecay,
        "CosineTest": control_by_cosine,
        "GradientDiversity": control_by_diversity,
    }
)
"""Old class name -> what makes today's value of its fields."""
