"""Runs without a model: rules over records, and the noisy quadratic."""

from largebatch.workbench import quadratic

__all__ = ["quadratic"]
