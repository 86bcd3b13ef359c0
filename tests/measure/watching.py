"""What the tests of measuring share: a rule that only asks, a record in memory, small models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from largebatch import api
from largebatch.act.loader import BatchLoader
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement


@dataclass(frozen=True)
class Ask:
    """Asks for statistics and changes nothing."""

    statistics: tuple[str, ...] = ("moments",)

    changes: ClassVar[frozenset[str]] = frozenset()
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.statistics)

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return None, replace(proposed, measure_next=proposed.measure_next | self.needs)


@dataclass
class Seen:
    """A record that keeps what was seen."""

    steps: list[Measurement] = field(default_factory=list)

    def start(self, facts: Any) -> None:
        pass

    def write(self, seen: Measurement, decision: Decision) -> None:
        self.steps.append(seen)

    def close(self) -> None:
        pass


def network(*, dtype: torch.dtype = torch.float32, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def data(size: int = 60, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, 3, (size,), generator=generator)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def controller(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    samples: tuple[Tensor, ...] | None = None,
    batch_size: int = 20,
    micro: int = 5,
    ask: tuple[str, ...] = ("moments",),
    **more: Any,
) -> tuple[api.Controller, Seen]:
    seen = Seen()
    batches = BatchLoader(
        data() if samples is None else samples,
        batch_size=batch_size,
        max_micro_batch_size=micro,
        shuffle=False,
    )
    control = api.Controller(
        model, optimizer, Ask(ask), batches, base_batch_size=4, record=seen, **more
    )
    return control, seen
