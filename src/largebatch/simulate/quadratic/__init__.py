"""The noisy quadratic model: what a schedule of batch sizes and learning rates will reach.

Every direction of a quadratic loss moves by itself, so the expected loss after any number of steps
at one batch and one rate is known in closed form, and a whole schedule costs milliseconds. Fixed
curvature, no generalisation: it ranks schedules, and forecasts them near a run it was fitted to.
"""

from largebatch.simulate.quadratic.adaptive import Normalised, Preconditioned
from largebatch.simulate.quadratic.averaged import Averaged
from largebatch.simulate.quadratic.dynamics import Dynamics, Phase
from largebatch.simulate.quadratic.forecast import Forecast, forecast
from largebatch.simulate.quadratic.heavy_ball import HeavyBall
from largebatch.simulate.quadratic.sgd import SGD
from largebatch.simulate.quadratic.spectrum import Spectrum

__all__ = [
    "SGD",
    "Averaged",
    "Dynamics",
    "Forecast",
    "HeavyBall",
    "Normalised",
    "Phase",
    "Preconditioned",
    "Spectrum",
    "forecast",
]
