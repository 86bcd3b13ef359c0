"""Every rule and every schedule's factor, each registered by its one import line.

`RULES` and `FACTORS` are read from these lines; a new paper adds its file and one line.
"""

from __future__ import annotations

from largebatch.core.codec import Maker
from largebatch.core.rule import Chain
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
from largebatch.rules.old_kinds import OLD_KINDS
from largebatch.rules.scaling import LinearScaling as LinearScaling
from largebatch.rules.scaling import SqrtScaling as SqrtScaling
from largebatch.rules.scaling import StepClock as StepClock
from largebatch.rules.schedule import Schedule as Schedule
from largebatch.rules.warmup import WarmUp as WarmUp

_CLASSES = {name: cls for name, cls in globals().items() if isinstance(cls, type)}

RULES: dict[str, type] = {
    n: c for n, c in _CLASSES.items() if "update" in vars(c) and c is not Chain
}
"""Class name -> rule."""

FACTORS: dict[str, type] = {n: c for n, c in _CLASSES.items() if "__call__" in vars(c)}
"""Class name -> factor of a `Schedule`."""

KINDS: dict[str, Maker] = {"Chain": Chain, **RULES, **FACTORS, **OLD_KINDS}
"""What `largebatch.core.codec.decode` may find where any rule or factor may stand, also in files of
earlier versions."""
