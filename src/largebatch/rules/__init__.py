"""Provide every rule and every schedule factor by name, and import each class on its first use.

The table NAMES is written by `make names` from the classes in this folder.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from largebatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from largebatch.rules.accordion import Accordion as Accordion
    from largebatch.rules.adaptive_growth import AdaptiveGrowth as AdaptiveGrowth
    from largebatch.rules.adascale import AdaScale as AdaScale
    from largebatch.rules.any_time_growth import AnyTimeGrowth as AnyTimeGrowth
    from largebatch.rules.auto_warm_up.rule import AutoWarmUp as AutoWarmUp
    from largebatch.rules.averaged import Averaged as Averaged
    from largebatch.rules.bounds import ClampBatch as ClampBatch
    from largebatch.rules.bounds import ClampLr as ClampLr
    from largebatch.rules.bounds import ClampToNoiseScale as ClampToNoiseScale
    from largebatch.rules.bounds import LimitGrowth as LimitGrowth
    from largebatch.rules.cabs import CABS as CABS
    from largebatch.rules.coordinate_norm_test import CoordinateNormTest as CoordinateNormTest
    from largebatch.rules.every import Every as Every
    from largebatch.rules.factors import WSD as WSD
    from largebatch.rules.factors import Constant as Constant
    from largebatch.rules.factors import Cosine as Cosine
    from largebatch.rules.factors import Exponential as Exponential
    from largebatch.rules.factors import HoldThenDecay as HoldThenDecay
    from largebatch.rules.factors import Linear as Linear
    from largebatch.rules.factors import Polynomial as Polynomial
    from largebatch.rules.factors import StepDecay as StepDecay
    from largebatch.rules.full_gradient_growth import FullGradientGrowth as FullGradientGrowth
    from largebatch.rules.growth import Growth as Growth
    from largebatch.rules.hysteresis import Hysteresis as Hysteresis
    from largebatch.rules.inner_product_test import (
        AugmentedInnerProductTest as AugmentedInnerProductTest,
    )
    from largebatch.rules.inner_product_test import InnerProductTest as InnerProductTest
    from largebatch.rules.legw import Legw as Legw
    from largebatch.rules.milestones import Milestones as Milestones
    from largebatch.rules.noise_scale import NoiseScaleControl as NoiseScaleControl
    from largebatch.rules.norm_test import NormTest as NormTest
    from largebatch.rules.observe import Observe as Observe
    from largebatch.rules.scaling import LinearScaling as LinearScaling
    from largebatch.rules.scaling import SqrtScaling as SqrtScaling
    from largebatch.rules.scaling import StepClock as StepClock
    from largebatch.rules.schedule import Schedule as Schedule
    from largebatch.rules.stages import Stages as Stages
    from largebatch.rules.warmup import WarmUp as WarmUp

NAMES: Mapping[str, str] = {
    "Accordion": "largebatch.rules.accordion",
    "AdaScale": "largebatch.rules.adascale",
    "AdaptiveGrowth": "largebatch.rules.adaptive_growth",
    "AnyTimeGrowth": "largebatch.rules.any_time_growth",
    "AugmentedInnerProductTest": "largebatch.rules.inner_product_test",
    "AutoWarmUp": "largebatch.rules.auto_warm_up.rule",
    "Averaged": "largebatch.rules.averaged",
    "CABS": "largebatch.rules.cabs",
    "ClampBatch": "largebatch.rules.bounds",
    "ClampLr": "largebatch.rules.bounds",
    "ClampToNoiseScale": "largebatch.rules.bounds",
    "Constant": "largebatch.rules.factors",
    "CoordinateNormTest": "largebatch.rules.coordinate_norm_test",
    "Cosine": "largebatch.rules.factors",
    "Every": "largebatch.rules.every",
    "Exponential": "largebatch.rules.factors",
    "FullGradientGrowth": "largebatch.rules.full_gradient_growth",
    "Growth": "largebatch.rules.growth",
    "HoldThenDecay": "largebatch.rules.factors",
    "Hysteresis": "largebatch.rules.hysteresis",
    "InnerProductTest": "largebatch.rules.inner_product_test",
    "Legw": "largebatch.rules.legw",
    "LimitGrowth": "largebatch.rules.bounds",
    "Linear": "largebatch.rules.factors",
    "LinearScaling": "largebatch.rules.scaling",
    "Milestones": "largebatch.rules.milestones",
    "NoiseScaleControl": "largebatch.rules.noise_scale",
    "NormTest": "largebatch.rules.norm_test",
    "Observe": "largebatch.rules.observe",
    "Polynomial": "largebatch.rules.factors",
    "Schedule": "largebatch.rules.schedule",
    "SqrtScaling": "largebatch.rules.scaling",
    "Stages": "largebatch.rules.stages",
    "StepClock": "largebatch.rules.scaling",
    "StepDecay": "largebatch.rules.factors",
    "WSD": "largebatch.rules.factors",
    "WarmUp": "largebatch.rules.warmup",
}

MOVED: Mapping[str, str] = {
    "After": "lb.rules.HoldThenDecay",
    "CosineTest": "lb.methods.cosine_test",
    "FACTORS": "lb.rules.kinds.FACTORS",
    "GradientDiversity": "lb.methods.gradient_diversity",
    "KINDS": "lb.rules.kinds.KINDS",
    "RULES": "lb.rules.kinds.RULES",
}
"""Map of each name in version 0.1 to the place of today's object. Each old name raises a warning
and will be removed in version 0.3."""

__all__ = [*NAMES]

if not TYPE_CHECKING:  # type checkers read the imports above
    __getattr__ = lazy_names(__name__, NAMES, moved=MOVED)


def __dir__() -> list[str]:
    """Return all public names, including those that are not imported yet."""
    return sorted(__all__)
