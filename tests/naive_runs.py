"""The plain loop with accumulation, and AdaScale by its formulas: what runs are compared with.

Nothing here uses the library to compute what the library is tested against.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from small_runs import loss_of


@dataclass
class NaiveAdaScale:
    """AdaScale by its formulas: weighted sums of the variance of one sample and of the squared norm
    of the true gradient, divided by the sum of the weights. Each step measures."""

    base_batch_size: int
    window: float = 1000.0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    last: float = math.inf

    def gain(self, squares: Sequence[float], sizes: Sequence[int], batch_square: float) -> float:
        """From each micro-batch's squared norm and samples, and the squared norm of the mean."""
        total, parts = sum(sizes), len(sizes)
        if parts > 1:
            mean = sum(n / total * square for n, square in zip(sizes, squares, strict=True))
            variance = total * (mean - batch_square) / (parts - 1)
            weight = total**2 * (parts - 1) / parts
            forget = min(total / self.base_batch_size / self.window, 1 / 8)
            keep = 1.0 - forget
            if self.sums[2] > 0.0:  # a step that weighs less is still a part of the new mean
                least = forget * min(1.0, weight / self.last)
                keep = min(keep, weight * (1.0 / least - 1.0) / self.sums[2])
            for at, value in enumerate((variance, batch_square - variance / total, 1.0)):
                self.sums[at] = keep * self.sums[at] + weight * value
            self.last = weight
        variance, sqnorm = self.sums[0] / self.sums[2], max(self.sums[1] / self.sums[2], 0.0)
        variance /= self.base_batch_size
        return (variance + sqnorm) / (variance / (total / self.base_batch_size) + sqnorm)


def chunk_sizes(batch_size: int, most: int, least: int = 1) -> list[int]:
    """Samples of each micro-batch: as few as fit, of nearly equal size, the larger ones first."""
    count = max(math.ceil(batch_size / most), min(least, batch_size))
    return [batch_size // count + (i < batch_size % count) for i in range(count)]


def naive_steps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    chunks: Sequence[Sequence[int]],
) -> Iterator[tuple[list[float], list[int], float]]:
    """Plain accumulation over the data in their order, again and again: each step's micro-batches
    hold so many samples. Gives squared norms and sizes of the parts, and the squared norm of the
    batch's gradient, with that gradient in `grad`; the caller steps and the next one clears."""
    position = 0
    for sizes in chunks:
        total, squares = sum(sizes), []
        mean = [torch.zeros_like(p) for p in model.parameters()]
        for size in sizes:
            rows = torch.arange(position, position + size) % len(x)
            position += size
            model.zero_grad()
            (loss_of(model, x[rows], y[rows]) * (size / total)).backward()
            gradients = [p.grad for p in model.parameters()]
            square = sum(g.double().square().sum().item() for g in gradients)
            squares.append(square * (total / size) ** 2)
            for sum_, gradient in zip(mean, gradients, strict=True):
                sum_.add_(gradient)
        for parameter, gradient in zip(model.parameters(), mean, strict=True):
            parameter.grad = gradient
        yield squares, list(sizes), sum(g.double().square().sum().item() for g in mean)


def step_with(optimizer: Optimizer, factor: float) -> None:
    """One step at so many times the rate."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
