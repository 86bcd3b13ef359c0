"""Optimizers that well-kept libraries lack or disagree on.

`Lamb` and `Lars` take in each layer as long a step as its weights allow; `AdaGradNorm` is the
scalar AdaGrad of the theory.
"""

from largebatch.optim.adagrad_norm import AdaGradNorm
from largebatch.optim.lamb import Lamb
from largebatch.optim.lars import Lars

__all__ = ["AdaGradNorm", "Lamb", "Lars"]
