"""Which layer a module is, and the modules that cannot be measured example by example."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from largebatch.measure.examples.convolution import ConvolutionLayer
from largebatch.measure.examples.embedding import EmbeddingLayer
from largebatch.measure.examples.layer import Layer, forward_is
from largebatch.measure.examples.linear import LinearLayer
from largebatch.measure.examples.normalization import (
    NormalizationLayer,
    uses_batch_statistics,
)
from largebatch.measure.examples.unknown import UnknownLayer

KNOWN: tuple[tuple[type[nn.Module], Callable[..., Layer]], ...] = (
    (nn.Linear, LinearLayer),
    (nn.Conv1d, ConvolutionLayer),
    (nn.Conv2d, ConvolutionLayer),
    (nn.Conv3d, ConvolutionLayer),
    (nn.Embedding, EmbeddingLayer),
    (nn.LayerNorm, NormalizationLayer),
    (nn.RMSNorm, NormalizationLayer),
    (nn.GroupNorm, NormalizationLayer),
    (_BatchNorm, NormalizationLayer),
)
"""A module is of a kind when it runs that kind's own forward."""


def layer_of(module: nn.Module, *, replace: bool = True) -> Layer:
    """The layer that a call of `module` is; `replace` says whether it may give the parameters'
    gradients."""
    if not is_parametrized(module):
        for kind, layer in KNOWN:
            if forward_is(module, kind):
                return layer(replace=replace)
    return UnknownLayer()


def is_known(module: nn.Module) -> bool:
    """Whether a module's gradient has a formula of its own here."""
    return not isinstance(layer_of(module), UnknownLayer)


def is_whole(module: nn.Module) -> bool:
    """Whether a module uses the parameters of the modules in it without calling those, so that it
    can only be taken as a whole."""
    return is_parametrized(module) or isinstance(module, nn.MultiheadAttention)


def coupled(module: nn.Module, name: str, *, batch_norm_rows: bool = False) -> str | None:
    """Why the examples of a batch depend on each other in a module, and what to do; None where
    they do not, or where batch normalization is to be measured by rows."""
    by_rows = batch_norm_rows and forward_is(module, _BatchNorm)
    if isinstance(module, _BatchNorm) and uses_batch_statistics(module) and not by_rows:
        kept = module.running_mean is not None
        fix = f"fix its statistics, model.get_submodule({name!r}).eval(), " if kept else ""
        return (
            f"{_called(name)} is batch normalization "
            f"{'in training mode' if kept else 'without running statistics'}: each example's "
            "output depends on the others, so no example has a gradient of its own. Either "
            f"{fix}normalize by group, torch.nn.GroupNorm(8, channels), or measure micro-batches: "
            "meter=lb.Meter(model)."
        )
    if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
        return (
            f"{_called(name)} divides a word's gradient by its number in the batch "
            "(scale_grad_by_freq=True), so no example has a gradient of its own. Leave that out, "
            "or measure micro-batches instead: meter=lb.Meter(model)."
        )
    return None


ROWS_ARE_OFF = (
    "batch normalization by rows: the variance of one sample was 1.05 to 4.6 times the true one, "
    "2.1 times in the median (experiments/batch_norm_rows)"
)
"""How a measurement by rows is labelled."""


def approximation_of(model: nn.Module) -> str | None:
    """Return how far a measurement of this model by rows may be off; None if it would be exact."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return ROWS_ARE_OFF if any(uses_batch_statistics(module) for module in norms) else None


def _called(name: str) -> str:
    return f"The module {name!r}" if name else "The model"
