"""The noisy quadratic model: what a schedule of batch sizes and learning rates will reach.

Every direction of a quadratic loss moves by itself, so the expected loss after any number of steps
at one batch and one rate is known in closed form, and a whole schedule costs milliseconds. Fixed
curvature, no generalisation: it ranks schedules, and forecasts them near a run it was fitted to.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from largebatch.core.lazy import lazy_names
from largebatch.workbench.quadratic.adaptive import Normalised, Preconditioned
from largebatch.workbench.quadratic.averaged import AveragedWeights
from largebatch.workbench.quadratic.dynamics import Dynamics, Phase
from largebatch.workbench.quadratic.fit import QuadraticFit, fit_quadratic
from largebatch.workbench.quadratic.forecast import Forecast, forecast
from largebatch.workbench.quadratic.heavy_ball import HeavyBall
from largebatch.workbench.quadratic.sgd import SGD
from largebatch.workbench.quadratic.spectrum import Spectrum

__all__ = [
    "SGD",
    "AveragedWeights",
    "Dynamics",
    "Forecast",
    "HeavyBall",
    "Normalised",
    "Phase",
    "Preconditioned",
    "QuadraticFit",
    "Spectrum",
    "fit_quadratic",
    "forecast",
]

MOVED: Mapping[str, str] = {"Averaged": "lb.workbench.quadratic.AveragedWeights"}
"""Name of version 0.1 -> where it is now. It warns, and goes in version 0.3."""

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, {}, moved=MOVED)
