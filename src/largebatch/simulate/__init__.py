"""Runs without a model: rules over records, and the noisy quadratic."""

from largebatch.simulate import quadratic

__all__ = ["quadratic"]
