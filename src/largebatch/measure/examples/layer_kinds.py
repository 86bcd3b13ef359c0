"""Choose the formulas for a module, and find modules whose examples cannot be measured."""

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
"""Map types of modules to their formulas. A module has a type if it runs the type's forward method.
"""


def layer_of(module: nn.Module, *, replace: bool = True) -> Layer:
    """Return the object that computes the examples' gradients of a module.

    Args: module: The module. replace: Whether the parameters' gradients may be summed from the
        examples' gradients.
    """
    if not is_parametrized(module):
        for kind, layer in KNOWN:
            if forward_is(module, kind):
                return layer(replace=replace)
    return UnknownLayer()


def is_known(module: nn.Module) -> bool:
    """Return whether a formula for the gradients of a module is implemented."""
    return not isinstance(layer_of(module), UnknownLayer)


def is_whole(module: nn.Module) -> bool:
    """Return whether a module uses the parameters of submodules without calling the submodules.

    A module that does not call its submodules can only be measured together with the submodules.
    """
    return is_parametrized(module) or isinstance(module, nn.MultiheadAttention)


def coupled(module: nn.Module, name: str, *, batch_norm_rows: bool = False) -> str | None:
    """Return the text of the error for a module in which the examples depend on each other.

    The text is None if the examples do not depend on each other, or if `batch_norm_rows` allows the
    module's batch normalization.
    """
    by_rows = batch_norm_rows and forward_is(module, _BatchNorm)
    if isinstance(module, _BatchNorm) and uses_batch_statistics(module) and not by_rows:
        kept = module.running_mean is not None
        fix = "Normalize"
        if kept:
            fix = f"Fix its statistics, model.get_submodule({name!r}).eval(), or normalize"
        return (
            f"{_called(name)} is batch normalization "
            f"{'in training mode' if kept else 'without running statistics'}, so the output of one "
            "example depends on other examples, and no example has its own gradient. "
            f"{fix} by groups, torch.nn.GroupNorm(8, channels), or measure micro-batches "
            "instead: meter=lb.Meter(model)."
        )
    if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
        return (
            f"{_called(name)} divides each word's gradient by the word's count in the batch "
            "(scale_grad_by_freq=True), so no example has its own gradient. Set "
            "scale_grad_by_freq=False, or measure micro-batches instead: meter=lb.Meter(model)."
        )
    return None


ROWS_ARE_OFF = (
    "batch normalization by rows: in experiments/batch_norm_rows the variance of one sample was "
    "1.05 to 4.6 times the true variance, and 2.1 times in the median"
)
"""Label of a measurement that counts the rows of batch normalization as examples."""


def approximation_of(model: nn.Module) -> str | None:
    """Return how inaccurate `batch_norm_rows` makes a measurement; None if it stays exact."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return ROWS_ARE_OFF if any(uses_batch_statistics(module) for module in norms) else None


def _called(name: str) -> str:
    return f"The module {name!r}" if name else "The model"
