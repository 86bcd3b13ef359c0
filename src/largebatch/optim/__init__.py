"""Provide optimizers that well-maintained libraries lack or implement differently.

`Lamb` and `Lars` adapt the length of each layer's step to the norm of the layer's weights.
`AdaGradNorm` is the scalar AdaGrad of the theory.
"""

from largebatch.optim.adagrad_norm import AdaGradNorm
from largebatch.optim.lamb import Lamb
from largebatch.optim.lars import Lars

__all__ = ["AdaGradNorm", "Lamb", "Lars"]
