"""Make the optimizers of the workloads.

The optimizers are fused, so that overheads are measured relative to torch's fast version of each
optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from largebatch.workbench.workloads.workload import OptimizerFactory


def sgd(*, momentum: float = 0.9, weight_decay: float = 0.0) -> OptimizerFactory:
    """Return a function that makes an SGD optimizer with heavy-ball momentum.

    >>> optimizer = sgd(momentum=0.9)([nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> optimizer.param_groups[0]["momentum"]
    0.9

    Args:
        momentum: Momentum factor, in [0, 1).
        weight_decay: Weight decay, at least 0.
    """

    def build(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
        return torch.optim.SGD(
            parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True
        )

    return build


def adamw(
    *, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.01
) -> OptimizerFactory:
    """Return a function that makes an AdamW optimizer.

    >>> optimizer = adamw()([nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> optimizer.param_groups[0]["betas"]
    (0.9, 0.95)

    Args:
        betas: Decay factors of the averages of the gradient and of its square, in [0, 1).
        weight_decay: Weight decay, at least 0.
    """

    def build(parameters: Iterable[nn.Parameter], *, lr: float) -> Optimizer:
        return torch.optim.AdamW(
            parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )

    return build
