"""Define models with batch normalization, and measure their gradient noise at fixed weights.

With batch normalization in training mode, the loss of one example depends on the other examples, so
an example has no gradient of its own. `lb.PerExample(batch_norm_rows=True)` uses the contribution
of the example's rows to the gradient of each layer in its place. The true values at fixed weights
and one batch size come from many random batches. The true variance is the variance of the batch
gradients times the batch size. The true squared norm is that of the mean gradient, corrected for
the noise of the mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from experiments.lab import workloads
from experiments.lab.run import Extra, Result, Run
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

import largebatch as lb
from largebatch.rules.adascale import gain
from largebatch.workbench.workloads.models import resnet8

BLOCKS = 20
"""Number of blocks of batches. The jackknife leaves out each block once for the standard error."""

SCALES = (4, 16)
"""Scales S of AdaScale's gain: the batch size divided by the base batch size."""

QUANTITIES = ("variance", "sqnorm", "noise scale", *(f"gain {scale}" for scale in SCALES))
"""Names of the quantities whose estimates are divided by the true values."""

TRAINED_BATCH, LR, MOMENTUM = 64, 0.05, 0.9
"""Batch size, learning rate and momentum of the training before the weights are held fixed."""


class Halved(nn.Module):
    """Halve the width and the height of images by averaging."""

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, 2)


def dense(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Return an MLP with two hidden layers of 128 units for digits [B, 64].

    Args:
        norm: Function that returns the normalization layer for a width.
    """
    return nn.Sequential(
        nn.Linear(64, 128), norm(128), nn.ReLU(),
        nn.Linear(128, 128), norm(128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def convolutions() -> nn.Module:
    """Return a CNN with two batch-normalized convolutions for images [B, 1, 28, 28]."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 49, 10),
    )  # fmt: skip


def residual() -> nn.Module:
    """Return a ResNet-8 with batch normalization and 8 to 32 channels for images of 14 x 14."""
    model = resnet8(width=8, classes=10)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.GroupNorm):
            model.set_submodule(name, nn.BatchNorm2d(module.num_channels))
    return nn.Sequential(Halved(), model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Describe a model and the data that it is measured on.

    Args:
        build: Function that builds the model.
        workload: Name of the workload whose training data is used.
        draws: Number of random batches per measurement.
    """

    build: Callable[[], nn.Module]
    workload: str
    draws: int


MODELS: Mapping[str, Model] = {
    "MLP without normalization": Model(
        build=lambda: dense(lambda width: nn.Identity()), workload="digits", draws=1000
    ),
    "MLP": Model(build=lambda: dense(nn.BatchNorm1d), workload="digits", draws=1000),
    "CNN": Model(build=convolutions, workload="fashion-cnn", draws=300),
    "ResNet-8": Model(build=residual, workload="fashion-cnn", draws=300),
}


def trained(name: str, *, seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and its optimizer after some training steps.

    Args:
        name: Name of the model, as in `MODELS`.
        seed: Seed of the initial weights and of the samples.
        steps: Number of training steps.
    """
    x, y = workloads.data(MODELS[name].workload).train
    torch.manual_seed(seed)
    model = MODELS[name].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    for at in torch.randint(len(x), (steps, TRAINED_BATCH)):
        optimizer.zero_grad()
        cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
    return model, optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedWeights(Run):
    """Describe a measurement of the true noise and of the estimate from rows, at fixed weights.

    Args:
        batch_size: Number of samples in each random batch.
        trained: Number of training steps before the weights are held fixed.
    """

    batch_size: int
    trained: int

    def make(self) -> Result:
        torch.set_num_threads(1)
        began = time.perf_counter()
        model, optimizer = trained(self.method, seed=self.seed, steps=self.trained)
        x, y = workloads.data(self.workload).train
        assert self.budget.steps is not None
        draws = _drawn(model, optimizer, (x, y), count=self.budget.steps, size=self.batch_size)
        found = values(_whole(draws), size=self.batch_size)
        ratios, errors = jackknifed(draws, size=self.batch_size)
        forecast = tuple((float(s), found[f"rows' gain {s}"], 0.0, 0.0) for s in SCALES)
        return Result(
            steps=self.budget.steps,
            samples=self.budget.steps * self.batch_size,
            base_steps=0.0,
            mean_gain=forecast[0][1],
            mean_multiplier=1.0,
            diverged=False,
            train={},
            validation={},
            test={},
            forecast=forecast,
            extra=Extra(
                notes={
                    **{name: float(f"{value:.6g}") for name, value in found.items()},
                    **{name: float(f"{value:.6g}") for name, value in ratios.items()},
                    **{f"{name} +-": float(f"{value:.3g}") for name, value in errors.items()},
                }
            ),
            seconds=time.perf_counter() - began,
        )


@dataclass(frozen=True, slots=True)
class Draws:
    """Hold sums over the gradients of random batches.

    Args:
        count: Number of batches.
        mean: Sum of the batch gradients, [parameters] in float64.
        sqnorm: Sum of the squared norms of the batch gradients.
        variance: Sum of the estimates from rows of the variance of one sample's gradient.
    """

    count: int
    mean: Tensor
    sqnorm: float
    variance: float

    def without(self, other: Draws) -> Draws:
        """Return the sums over the batches that are not in `other`."""
        return Draws(
            self.count - other.count,
            self.mean - other.mean,
            self.sqnorm - other.sqnorm,
            self.variance - other.variance,
        )


def _drawn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    *,
    count: int,
    size: int,
) -> list[Draws]:
    """Return the sums of each block of random batches, which are drawn with replacement.

    Args:
        model: Model at the weights that are held fixed.
        optimizer: Optimizer of the model; it makes no step.
        data: Inputs and labels.
        count: Number of batches over all blocks.
        size: Number of samples in one batch.
    """
    x, y = data
    rows = lb.PerExample(exact_training=True, batch_norm_rows=True)
    meter = lb.Meter(model, examples=rows)
    meter.bind(optimizer)
    blocks = []
    for _ in range(BLOCKS):
        mean, sqnorm, variance = torch.zeros(1, dtype=torch.float64), 0.0, 0.0
        for at in torch.randint(len(x), (count // BLOCKS, size)):
            optimizer.zero_grad()
            meter.open(frozenset({"moments"}))
            loss = cross_entropy(model(x[at]), y[at])
            meter.backward(loss, share=1.0, weight=size, samples=size, last=True)
            moments = meter.close(planned_weight=size).moments
            assert moments is not None
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            mean = mean + torch.cat(gradients).double()
            sqnorm += moments.batch_sqnorm
            variance += moments.variance
        blocks.append(Draws(count // BLOCKS, mean, sqnorm, variance))
    return blocks


def _whole(blocks: Sequence[Draws]) -> Draws:
    """Return the sums over all blocks."""
    return Draws(
        sum(block.count for block in blocks),
        torch.stack([block.mean for block in blocks]).sum(0),
        math.fsum(block.sqnorm for block in blocks),
        math.fsum(block.variance for block in blocks),
    )


def values(draws: Draws, *, size: int) -> dict[str, float]:
    """Return the true variance, squared norm, noise scale and gains, and their estimates from rows.

    Let g be the gradients of D batches of B samples. The squared norm of the mean gradient is
    estimated as the mean product of two different g: |G|^2 = (|sum g|^2 - sum |g|^2) / (D (D - 1)).
    The variance of one sample's gradient is B (mean |g|^2 - |G|^2).

    Args:
        draws: Sums over the batches.
        size: Number of samples in one batch.
    """
    n, whole = draws.count, float(draws.mean.square().sum())
    batch_sqnorm = draws.sqnorm / n
    sqnorm = (whole - draws.sqnorm) / (n * (n - 1))
    variance = size * (batch_sqnorm - sqnorm)
    of_rows = draws.variance / n
    pairs = {
        "rows'": (of_rows, batch_sqnorm - of_rows / size),
        "true": (variance, sqnorm),
    }
    found: dict[str, float] = {}
    for name, (v, s) in pairs.items():
        found |= {f"{name} variance": v, f"{name} sqnorm": s, f"{name} noise scale": v / s}
        for scale in SCALES:
            worth = gain(scale=scale, variance=v * scale / size, sqnorm=s)
            found[f"{name} gain {scale}"] = worth
    return found


def _ratios(draws: Draws, size: int) -> dict[str, float]:
    """Return the estimate from rows divided by the true value, for each quantity."""
    found = values(draws, size=size)
    return {name: found[f"rows' {name}"] / found[f"true {name}"] for name in QUANTITIES}


def jackknifed(blocks: Sequence[Draws], *, size: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the ratios of the estimates from rows to the true values, and their standard errors.

    Args:
        blocks: Sums of each block of batches.
        size: Number of samples in one batch.
    """
    whole = _whole(blocks)
    ratios = _ratios(whole, size)
    each = [_ratios(whole.without(block), size) for block in blocks]
    n = len(blocks)
    errors = {}
    for name in QUANTITIES:
        mean = math.fsum(one[name] for one in each) / n
        errors[name] = math.sqrt((n - 1) / n * math.fsum((one[name] - mean) ** 2 for one in each))
    return ratios, errors
