"""Large-batch training in PyTorch: measure the gradient's noise, set rate and batch from it."""

__version__ = "0.1.0"
