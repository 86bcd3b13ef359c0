"""The optimizers of the workloads, fused: the fair baseline for any overhead."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from largebatch.workbench.workloads.workload import OptimizerFactory


def sgd(*, momentum: float = 0.9, weight_decay: float = 0.0) -> OptimizerFactory:
    """SGD with heavy-ball momentum."""

    def build(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
        return torch.optim.SGD(
            parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True
        )

    return build


def adamw(
    *, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.01
) -> OptimizerFactory:
    """AdamW."""

    def build(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
        return torch.optim.AdamW(
            parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )

    return build
