"""Forecast the loss of a schedule of batch sizes and learning rates with a noisy quadratic model.

In a quadratic loss, every eigen-direction evolves independently. The expected loss after any number
of steps at one batch size and learning rate therefore has a closed form, and a whole schedule takes
milliseconds. The curvature of the model is constant, and the model says nothing about the test
loss. Use the model to rank schedules, and to forecast the loss of schedules that are similar to the
schedule of a recorded run.
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
"""New name for each name of version 0.1 that has changed.

An old name still works but raises a warning, and will be removed in version 0.3.
"""

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, {}, moved=MOVED)
