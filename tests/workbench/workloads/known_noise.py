"""Define a workload whose noise scale has a closed form for all weights.

    loss(w) = mean over samples of |w - x|^2 / 2,    x ~ N(mu, s^2 I) in d dimensions
    gradient of one sample: w - x;  variance = d s^2;  sqnorm = |w - mu|^2

so noise_scale = d s^2 / |w - mu|^2 samples.
"""

import torch
from torch import Tensor, nn

from largebatch.workbench.workloads import Batch, Data, Workload, sgd

DIMENSIONS = 10
SPREAD = 2.0
MEAN = 1.0


class Point(nn.Module):
    """Hold weights w that start at 0, and return w - x, which is the gradient of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(DIMENSIONS))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x


def variance() -> float:
    """Return tr Sigma of one sample's gradient, which is the same for all weights."""
    return DIMENSIONS * SPREAD**2


def sqnorm(w: Tensor) -> float:
    """Return |G|^2 of the true gradient at the weights w."""
    return float((w - MEAN).square().sum())


def noise_scale(w: Tensor) -> float:
    """Return the noise scale variance / sqnorm, in samples."""
    return variance() / sqnorm(w)


def load_points() -> Data:
    draw = torch.Generator().manual_seed(0)
    points = MEAN + SPREAD * torch.randn(40_000, DIMENSIONS, generator=draw)
    return Data(
        train=(points[:30_000],), validation=(points[30_000:35_000],), test=(points[35_000:],)
    )


def half_square(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch[0]).square().sum(1).mean() / 2


def known_noise() -> Workload:
    return Workload(
        name="known-noise",
        summary="A point drawn to normally distributed ones: the noise scale is known",
        model=Point,
        data=load_points,
        loss=half_square,
        optimizer=sgd(momentum=0.0),
        base_batch_size=32,
        base_lr=0.1,
        micro_batch_size=256,
        budget_epochs=1,
    )
