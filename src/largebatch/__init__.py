"""Large-batch training in PyTorch: measure the gradient's noise, set rate and batch from it."""

from largebatch.core.version import __version__

__all__ = ["__version__"]
