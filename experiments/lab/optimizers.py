"""Build the optimizers that can replace the optimizer of a workload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import nn
from torch.optim import Optimizer

import largebatch as lb
from largebatch.workbench import workloads

Build = Callable[..., Optimizer]


def lamb(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    return lb.optim.Lamb(parameters, lr, weight_decay=0.01)


def lars(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    return lb.optim.Lars(parameters, lr, weight_decay=1e-4)


def adagrad(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    return torch.optim.Adagrad(parameters, lr=lr)


def adagrad_norm(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    return lb.optim.AdaGradNorm(parameters, lr=lr)


def adamp(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    from pytorch_optimizer import AdamP

    return AdamP(list(parameters), lr=lr, weight_decay=0.01)


def prodigy(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    from pytorch_optimizer import Prodigy

    return Prodigy(list(parameters), lr=lr)


def schedule_free(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
    from pytorch_optimizer import ScheduleFreeAdamW

    return ScheduleFreeAdamW(list(parameters), lr=lr)


OPTIMIZERS: Mapping[str, Build] = MappingProxyType(
    {
        "sgd": workloads.sgd(),
        "sgd-plain": workloads.sgd(momentum=0.0),
        "adamw": workloads.adamw(),
        "adagrad": adagrad,
        "adagrad-norm": adagrad_norm,
        "lamb": lamb,
        "lars": lars,
        "adamp": adamp,
        "prodigy": prodigy,
        "schedule-free": schedule_free,
    }
)
"""Name of an optimizer -> the function that builds it from parameters and a learning rate."""
