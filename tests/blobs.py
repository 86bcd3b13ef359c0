"""A small classifier with its data and loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def blobs(samples: int = 600) -> Batch:
    draw = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (samples,), generator=draw)
    return 2.0 * nn.functional.one_hot(y, 6) + torch.randn(samples, 6, generator=draw), y


def classifier(*, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(16, 3)
    )
