"""Builds the real runs whose checkpoints version 0.1.0 wrote, in the same way as then.

Weights and data are computed from whole numbers without a random generator, so they have the same
bits on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import old_files
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

import largebatch as lb

SAMPLES = 64


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Return a noisy linear regression, x `[N, 3]` and y `[N, 1]`, and each sample's number."""
    number = torch.arange(3 * SAMPLES).reshape(SAMPLES, 3)
    x = ((number * number * 37 + number * 11) % 61 - 30) / 32.0
    index = torch.arange(SAMPLES)
    noise = ((index * index * 29 + index * 5) % 17 - 8) / 16.0
    y = x[:, :1] - 2.0 * x[:, 1:2] + 0.5 * x[:, 2:] + noise[:, None]
    return x, y, index


def small_model() -> nn.Sequential:
    """Return a net of 21 weights."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for at, parameter in enumerate(model.parameters()):
            number = torch.arange(parameter.numel()).reshape(parameter.shape)
            parameter.copy_(((number * 23 + at * 7) % 19 - 9) / 16.0)
    return model


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error over the samples."""
    found: Tensor = (model(x) - y).square().mean()
    return found


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def examples(model: nn.Module) -> lb.Meter:
    return lb.Meter(model, examples=lb.PerExample())


def coordinates(model: nn.Module) -> lb.Meter:
    return lb.Meter(
        model, statistics=[lb.measure.SquaredNorms(), lb.measure.CoordinateNoiseScale()]
    )


def full_gradient(model: nn.Module) -> lb.Meter:
    x, y, _ = data()
    full = lb.FullGradient((x, y), lambda model, batch: loss_of(model, batch[0], batch[1]))
    return lb.Meter(model, full=full)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Describes a run of `lb.Controller`.

    Args:
        rule, optimizer, meter: build it.
        batch_size: of the first step; the base batch has 8 samples.
        budget: the argument of `control.steps`.
        cut: optimizer steps before its checkpoint.
        resizes: whether the batch is changed by hand at times.
    """

    rule: Callable[[], lb.Rule]
    optimizer: Callable[[nn.Module], Optimizer] = sgd
    meter: Callable[[nn.Module], lb.Meter] = lb.Meter
    batch_size: int = 16
    budget: Mapping[str, float] = field(default_factory=lambda: {"samples": 400})
    cut: int = 7
    resizes: bool = False

    def build(self) -> lb.Controller:
        model = small_model()
        batches = lb.BatchLoader(data(), batch_size=self.batch_size, max_micro_batch_size=4, seed=3)
        return lb.Controller(
            model,
            self.optimizer(model),
            self.rule(),
            batches,
            base_batch_size=8,
            meter=self.meter(model),
        )

    def train(self, control: lb.Controller, *, stop_after: int | None = None) -> dict[str, Any]:
        """Train to the end of the budget or to a step, and return each step as plain values."""
        steps = []
        for batch in control.steps(**self.budget):
            taken, losses = [], []
            for x, y, index in batch:
                loss = loss_of(control.model, x, y)
                control.backward(loss)
                taken.append(index.tolist())
                losses.append(float(loss.detach()))
            if control.optimizer_steps + 1 == stop_after:
                control.stop()
            decision = control.step()
            if self.resizes and control.optimizer_steps % 5 == 3:
                control.resize(8 + 4 * (control.optimizer_steps % 3))
            steps.append({**plain(decision), "samples": taken, "losses": losses})
        return {"steps": steps, "end": end_of(control)}


def plain(decision: lb.Decision) -> dict[str, Any]:
    """Return a decision as JSON has it."""
    facts = old_files.facts_of(decision)
    return {**facts, "reason": decision.reason}


def end_of(control: Any) -> dict[str, Any]:
    """Return the clocks and the weights of a run."""
    parameters = [p for group in control.optimizer.param_groups for p in group["params"]]
    return {
        "optimizer_steps": control.optimizer_steps,
        "base_steps": control.base_steps,
        "skipped": control.skipped,
        "used": control.samples,
        "weights": [float(w) for p in parameters for w in p.detach().flatten()],
    }


RUNS: dict[str, Run] = {
    "adascale": Run(
        rule=lambda: lb.chain(lb.AdaScale(window=500), lb.Schedule(factor=lb.Cosine())),
        budget={"base_steps": 40},  # whole numbers where floats are declared, as users write them
        resizes=True,
    ),
    "adascale-adam": Run(rule=lb.methods.adascale_adam, optimizer=adamw),
    "adasgd": Run(rule=lambda: lb.methods.adasgd(every=3, max=48), batch_size=8),
    "adadam": Run(rule=lambda: lb.methods.adadam(every=3, max=48), optimizer=adamw, batch_size=8),
    "autowu": Run(
        rule=lambda: lb.methods.autowu(low=1e-3, high=0.2),
        batch_size=8,
        budget={"steps": 90},
        cut=70,
    ),
    "autowu-search": Run(
        rule=lambda: lb.methods.autowu(low=1e-3, high=0.2),
        batch_size=8,
        budget={"steps": 90},
        cut=40,
    ),
    "growth": Run(rule=lambda: lb.methods.growth(stages=3), batch_size=8, budget={"epochs": 5}),
    "per-example": Run(
        rule=lambda: lb.chain(
            lb.Every(lb.rules.AugmentedInnerProductTest(theta=0.5, nu=2.0), steps=3),
            lb.LimitGrowth(factor=2.0, shrink=1.0),
            lb.ClampBatch(max=32, multiple_of=8),
        ),
        meter=examples,
        batch_size=8,
    ),
    "coordinates": Run(
        rule=lambda: lb.chain(
            lb.Every(lb.rules.CoordinateNormTest(statistic="coordinate_noise_scale"), steps=3),
            lb.LimitGrowth(factor=2.0, shrink=1.0),
            lb.ClampBatch(max=32, multiple_of=8),
            lb.SqrtScaling(),
        ),
        meter=coordinates,
        batch_size=8,
    ),
    "full-gradient": Run(
        rule=lambda: lb.methods.full_gradient_growth(eps0=1.0, check=4, max=48),
        meter=full_gradient,
        batch_size=8,
    ),
}  # fmt: skip


AVERAGING = ("adascale", "adascale-adam", "adasgd", "adadam")
"""Runs whose rules have running averages, which count base batches since version 0.2."""


def load(name: str, model: nn.Module, control: Any) -> None:
    """Resume a run from its checkpoint as a training script does."""
    state = lb.Checkpoints(old_files.FOLDER / "checkpoints" / name).load().state
    control.load_state_dict(state["control"])
    model.load_state_dict(state["model"])
    control.optimizer.load_state_dict(state["optimizer"])


def attach(model: nn.Module) -> Any:
    """Return a run of `lb.attach` on a model."""
    return lb.attach(
        model,
        sgd(model),
        lb.chain(lb.AdaScale(), lb.Schedule(factor=lb.Cosine())),
        batch_size=16,
        base_batch_size=4,
        budget=lb.Budget(base_steps=60),
    )


def train_attached(control: Any, model: nn.Module, *, steps: int) -> dict[str, Any]:
    """Train a plain loop over the data in their order, and return each decision."""
    x, y, _ = data()
    found = []
    for _ in range(steps):
        losses = []
        for part in range(4):
            first = 16 * (control.optimizer_steps % 4) + 4 * part
            loss = loss_of(model, x[first : first + 4], y[first : first + 4])
            (loss / 4).backward()
            losses.append(float(loss.detach()))
        control.optimizer.step()
        control.optimizer.zero_grad()
        control.advance()
        found.append({**plain(control.decision), "losses": losses})
    return {"steps": found, "end": end_of(control)}


class Numbers(Dataset[Tensor]):
    """Holds the whole numbers below 20, as a map-style data set."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, at: int) -> Tensor:
        return torch.tensor([at])


LOADERS: dict[str, Callable[[], lb.BatchLoader]] = {
    "tensor": lambda: lb.BatchLoader(torch.arange(20), batch_size=6, max_micro_batch_size=4),
    "tensor-in-order": lambda: lb.BatchLoader(torch.arange(20), batch_size=6, shuffle=False),
    "data-set": lambda: lb.BatchLoader(Numbers(), batch_size=6, seed=5),
    "fitted": lambda: lb.BatchLoader(
        torch.arange(20), batch_size=6, max_micro_batch_size="auto", seed=2
    ),
    "own-loader": lambda: lb.BatchLoader(DataLoader(Numbers(), batch_size=3), batch_size=6),
}


def workload() -> old_files.Workload:
    """Return a user's own workload, for the runs of `largebatch train`."""
    x, y, _ = data()
    return old_files.Workload(
        name="old",
        summary="a noisy linear regression",
        model=small_model,
        data=lambda: old_files.Data(train=(x, y), validation=(x, y), test=(x, y)),
        loss=lambda model, batch: loss_of(model, *batch),
        optimizer=lambda parameters, *, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        base_batch_size=4,
        base_lr=0.02,
        schedule=lb.Cosine(),
        micro_batch_size=4,
        budget_epochs=4,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRule:
    """Halves the learning rate every few steps. It stands for a rule that a user wrote."""

    needs: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[frozenset[str]] = frozenset({"lr"})
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()

    every: int = 5

    def init(self) -> OwnState:
        return OwnState()

    def update(
        self, state: OwnState, seen: lb.Measurement, proposed: lb.Decision
    ) -> tuple[OwnState, lb.Decision]:
        state = OwnState(steps=state.steps + 1)
        return state, proposed.scaled(0.5 ** (state.steps // self.every), because="halved")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnState:
    """Counts the steps that the rule has seen."""

    steps: int = 0
