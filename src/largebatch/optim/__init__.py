"""Optimizers whose step in each layer is as long as the layer's weights allow."""

from largebatch.optim.lamb import Lamb
from largebatch.optim.lars import Lars

__all__ = ["Lamb", "Lars"]
