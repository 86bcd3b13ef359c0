"""The optimizers that methods are named after, for workloads that train with another one."""

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
    """The optimizer that a method is named after.

    Args:
        kinds: optimizers that will do; a workload that has one of them keeps it, with its rate.
        build: the one that others are replaced by.
        lr: its rate, which suits many models and is tuned for none.
    """

    kinds: tuple[type[Optimizer], ...]
    build: OptimizerFactory
    lr: float


def adagrad(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    """Adagrad as torch has it by default."""
    return torch.optim.Adagrad(parameters, lr=lr)


def adagrad_norm(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    """The scalar AdaGrad as it is by default."""
    return AdaGradNorm(parameters, lr=lr)


METHOD_OPTIMIZERS: Mapping[str, MethodOptimizer] = {
    "adagrad": MethodOptimizer(kinds=(torch.optim.Adagrad,), build=adagrad, lr=0.01),
    "adagrad-norm": MethodOptimizer(kinds=(AdaGradNorm,), build=adagrad_norm, lr=1.0),
    "adam": MethodOptimizer(kinds=(torch.optim.Adam, torch.optim.AdamW), build=adamw(), lr=0.001),
}
"""What a method's `optimizer` stands for; the rates are torch's, and 1 for AdaGrad-Norm."""


def with_method_optimizer(workload: Workload, optimizer: str | None) -> tuple[Workload, str]:
    """Return the workload with an optimizer of that kind, and a text that says what was changed.

    >>> from largebatch.workbench.workloads import load
    >>> changed, why = with_method_optimizer(load("digits"), "adagrad")
    >>> changed.base_lr, why
    (0.01, 'trained with Adagrad instead of SGD; its rate of 0.01 is not tuned: --lr 0.02')

    Args:
        workload: what is trained.
        optimizer: a name of `METHOD_OPTIMIZERS`; None for whatever the workload has.

    Returns:
        The workload as it was, and no words, where its own optimizer is of that kind.
    """
    if optimizer is None:
        return workload, ""
    own, there = METHOD_OPTIMIZERS[optimizer], _kind(workload.optimizer)
    if issubclass(there, own.kinds):
        return workload, ""
    changed = replace(workload, optimizer=own.build, base_lr=own.lr)
    return changed, (
        f"trained with {_kind(own.build).__name__} instead of {there.__name__}; its rate of "
        f"{own.lr:g} is not tuned: --lr {2 * own.lr:g}"
    )


def _kind(build: OptimizerFactory) -> type[Optimizer]:
    return type(build([nn.Parameter(torch.zeros(1))], lr=1.0))
