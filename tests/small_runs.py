"""Small data, models and rules that several test files train, and the plain loop they compare with.

Nothing here uses the library to compute what the library is tested against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.act.controller import Controller
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement

Optimize = Callable[[nn.Module], Optimizer]


def data(samples: int = 48, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A noisy linear regression: x `[N, 3]`, y `[N, 1]`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=generator)
    noise = torch.randn(samples, 1, generator=generator)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.5 * noise


def small_model(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean over the samples."""
    return (model(x) - y).square().mean()


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def train(
    control: Controller, *, clip_norm: float | None = None, **budget: float
) -> list[Decision]:
    """Runs the documented loop on batches of (x, y); what was decided."""
    decisions = []
    for batch in control.steps(**budget):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        decisions.append(control.step(clip_norm=clip_norm))
    return decisions


class Facts:
    """A rule of a test needs nothing and forbids nothing."""

    needs: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[frozenset[str]] = frozenset({"lr"})
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()

    def init(self) -> Any:
        return None


@dataclass(frozen=True, kw_only=True)
class Growing(Facts):
    """Doubles the batch once so many samples are used; the rate follows the batch in hand."""

    changes: ClassVar[frozenset[str]] = frozenset({"lr", "batch"})
    first: int
    after_samples: int

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        late = seen.samples + seen.batch_size >= self.after_samples
        proposed = proposed.resized(self.first * 2 if late else self.first)
        return state, proposed.scaled(seen.batch_size / self.first)


@dataclass(frozen=True, kw_only=True)
class Falling(Facts):
    """A rate that falls linearly over the run's budget."""

    needs: ClassVar[frozenset[str]] = frozenset({"budget"})

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, proposed.scaled(1.0 - seen.progress)


@dataclass(frozen=True, kw_only=True)
class Factor(Facts):
    """A constant factor on the rate."""

    factor: float = 3.0

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, proposed.scaled(self.factor)


@dataclass(frozen=True, kw_only=True)
class Shrinking(Facts):
    """Bounds the batch."""

    changes: ClassVar[frozenset[str]] = frozenset()
    bounds: ClassVar[frozenset[str]] = frozenset({"batch"})

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, replace(proposed, next_batch_size=min(proposed.next_batch_size, 8))


@dataclass
class NaiveAdaScale:
    """AdaScale by its formulas: an exponential average from zero, divided by what its weights sum
    to, of the variance of one sample and of the squared norm of the true gradient."""

    base_batch_size: int
    window: float = 1000.0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def gain(self, squares: Sequence[float], sizes: Sequence[int], batch_square: float) -> float:
        """From each micro-batch's squared norm and samples, and the squared norm of the mean."""
        total, parts = sum(sizes), len(sizes)
        if parts > 1:
            mean = sum(n / total * square for n, square in zip(sizes, squares, strict=True))
            variance = total * (mean - batch_square) / (parts - 1)
            keep = max(1.0 - parts / self.window, 0.0)
            for at, value in enumerate((variance, batch_square - variance / total, 1.0)):
                self.sums[at] = keep * self.sums[at] + (1.0 - keep) * value
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
