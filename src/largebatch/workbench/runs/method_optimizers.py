"""Replace the optimizer of a workload if a method is named after another optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.optim import Optimizer

from largebatch.optim import AdaGradNorm
from largebatch.workbench.workloads import Workload
from largebatch.workbench.workloads.optimizers import adamw
from largebatch.workbench.workloads.workload import OptimizerFactory


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptimizer:
    """Describe the optimizer that a method is named after.

    Args:
        kinds: Accepted optimizer classes. A workload whose optimizer has an accepted class keeps
            its optimizer and its learning rate.
        build: Function that makes the optimizer that replaces an optimizer of any other class.
        lr: Learning rate of the new optimizer. The learning rate suits many models but is not
            tuned.
    """

    kinds: tuple[type[Optimizer], ...]
    build: OptimizerFactory
    lr: float


def adagrad(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    """Return torch's Adagrad with its default settings."""
    return torch.optim.Adagrad(parameters, lr=lr)


def adagrad_norm(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    """Return AdaGradNorm, the AdaGrad with one scalar step size, with its default settings."""
    return AdaGradNorm(parameters, lr=lr)


METHOD_OPTIMIZERS: Mapping[str, MethodOptimizer] = {
    "adagrad": MethodOptimizer(kinds=(torch.optim.Adagrad,), build=adagrad, lr=0.01),
    "adagrad-norm": MethodOptimizer(kinds=(AdaGradNorm,), build=adagrad_norm, lr=1.0),
    "adam": MethodOptimizer(kinds=(torch.optim.Adam, torch.optim.AdamW), build=adamw(), lr=0.001),
}
"""Optimizer for each value of a method's `optimizer` field.

The learning rate of AdaGradNorm is 1, and the other learning rates are torch's defaults.
"""


def with_method_optimizer(workload: Workload, optimizer: str | None) -> tuple[Workload, str]:
    """Return the workload with the required optimizer, and a text that describes the change.

    >>> from largebatch.workbench.workloads import load
    >>> changed, why = with_method_optimizer(load("digits"), "adagrad")
    >>> changed.base_lr, why
    (0.01, 'trained with Adagrad instead of SGD; the learning rate lr=0.01 is not tuned')

    Args:
        workload: Workload to train.
        optimizer: Name in `METHOD_OPTIMIZERS`, or None to keep the workload's optimizer.

    Returns:
        The workload and a text. If the workload already has the required optimizer, the workload is
        unchanged and the text is empty.
    """
    if optimizer is None:
        return workload, ""
    own, there = METHOD_OPTIMIZERS[optimizer], _kind(workload.optimizer)
    if issubclass(there, own.kinds):
        return workload, ""
    changed = replace(workload, optimizer=own.build, base_lr=own.lr)
    return changed, (
        f"trained with {_kind(own.build).__name__} instead of {there.__name__}; the learning rate "
        f"lr={own.lr:g} is not tuned"
    )


def _kind(build: OptimizerFactory) -> type[Optimizer]:
    return type(build([nn.Parameter(torch.zeros(1))], lr=1.0))
