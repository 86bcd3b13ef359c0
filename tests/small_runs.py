"""Small data, models and losses that the tests train, and the loop over a controller's steps.

There are two problems: a regression (`data`, `small_model`, `loss_of`) and a classification
(`class_data`, `classifier`, `class_loss`). The same arguments give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import largebatch as lb
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement

Optimize = Callable[[nn.Module], Optimizer]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


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


def class_data(
    samples: int = 60, *, seed: int = 7, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return random inputs `[N, 5]` and random classes `[N]`, of which there are three."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, 3, (samples,), generator=generator)


def classifier(
    *inside: nn.Module, seed: int = 1, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Return a model of `class_data`; `inside` follows the hidden layer of 7. Seeds torch, too."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), *inside, nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def class_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy, the mean over the samples."""
    return nn.functional.cross_entropy(model(x), y)


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return `class_loss` of a pair, in the form that checks and probes take."""
    return class_loss(model, *batch)


def train(
    control: lb.Controller, *, loss: Loss = loss_of, clip_norm: float | None = None, **budget: float
) -> list[Decision]:
    """Run the documented loop on batches of (x, y) and return each step's decision."""
    decisions = []
    for batch in control.steps(**budget):
        for x, y in batch:
            control.backward(loss(control.model, x, y))
        decisions.append(control.step(clip_norm=clip_norm))
    return decisions


@dataclass
class Seen:
    """A record that keeps each step's measurement."""

    steps: list[Measurement] = field(default_factory=list)

    def start(self, facts: Any) -> None:
        pass

    def write(self, seen: Measurement, decision: Decision) -> None:
        self.steps.append(seen)

    def close(self) -> None:
        pass


def measuring_controller(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    samples: tuple[Tensor, ...] | None = None,
    batch_size: int = 20,
    micro: int = 5,
    ask: tuple[str, ...] = ("moments",),
    **more: Any,
) -> tuple[lb.Controller, Seen]:
    """Return a controller on `class_data` that measures statistics, and what it will have seen."""
    batches = lb.BatchLoader(
        class_data() if samples is None else samples,
        batch_size=batch_size,
        max_micro_batch_size=micro,
        shuffle=False,
    )
    rule, seen = lb.Observe(statistics=ask), Seen()
    control = lb.Controller(model, optimizer, rule, batches, base_batch_size=4, record=seen, **more)
    return control, seen
