"""Runs that have one fault each, for the tests of the checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

import largebatch as lb
from largebatch.checks.finding import CheckUp, Finding
from small_runs import class_data, classifier

SAMPLES = 96


def controlled(
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    *,
    rule: lb.Rule | None = None,
    source: Any = None,
    batch_size: int = 32,
    micro: int | None = 16,
    base: int = 16,
    scaler: Any = None,
) -> lb.Controller:
    """A run that has no fault, but for what is given."""
    model = model if model is not None else classifier()
    loader = lb.BatchLoader(
        source if source is not None else class_data(SAMPLES),
        batch_size=batch_size,
        max_micro_batch_size=micro if source is None else None,
    )
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rule = rule or lb.AdaScale()
    return lb.Controller(model, optimizer, rule, loader, base_batch_size=base, scaler=scaler)


def the(found: CheckUp, name: str) -> Finding:
    """The only finding of a check."""
    (finding,) = [finding for finding in found.findings if finding.name == name]
    return finding


def alarms(found: CheckUp) -> list[str]:
    """What is not ok, by name."""
    return [finding.name for finding in found.findings if finding.level != "ok"]


class Doubled(nn.Module):
    """Two layers of which one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


class Checkpointed(nn.Module):
    """Activations of the first layer are computed again in the backward."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        inside = checkpoint(self.first, x.requires_grad_(), use_reentrant=self.reentrant)
        out: Tensor = self.last(inside)
        return out


class TwoSteps(torch.optim.SGD):
    """Steps as SAM does: with a closure alone."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is not None, "closure must be provided"
        closure()
        super().step()
