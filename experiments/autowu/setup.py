"""Define the cells, the grids of learning rates and the runs of the AutoWU experiment."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.lab.run import Extra, Result, Run
from experiments.lab.workloads import workload as load
from torch.optim import Optimizer

import largebatch as lb


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Describe one row of the table: a workload and an optimizer with a batch size and a budget.

    Args:
        workload, optimizer: Names of the workload and of the optimizer.
        scale: Scale S: the batch size divided by the base batch size.
        steps: Number of optimizer steps of each run.
        seeds: Number of seeds of AutoWU and of each learning rate of the grid.
    """

    workload: str
    optimizer: str
    scale: int
    steps: int
    seeds: int = 3

    @property
    def name(self) -> str:
        """Return the name of the cell in tables and in `expected.json`."""
        batch = self.scale * load(self.workload).base_batch_size
        return f"{self.workload}, {self.optimizer}, batch {batch}"


LEAST = {"sgd": 0.01, "lamb": 0.0025, "adamw": 2.5e-4, "adamp": 2.5e-4, "lars": 1.0}
"""Optimizer -> smallest of seven peak learning rates. Each learning rate is twice the one before,
and four times the one before for LARS."""

RANGES = {
    "sgd": (1e-4, 1.0),
    "lamb": (1e-4, 1.0),
    "adamw": (1e-5, 0.1),
    "adamp": (1e-5, 0.1),
    "lars": (1e-2, 100.0),
}
"""Optimizer -> first and last learning rate of AutoWU's longest warm-up, as the documentation
recommends them."""

BASE_RATE = {"fashion-cnn": 0.02, "digits": 0.04, "fashion-resnet8": 0.05, "stdlib-narrow": 0.04}
"""Workload -> learning rate of SGD at the base batch size, which linear scaling multiplies."""

WARM_UP = 0.05
"""Fraction of the budget in which the learning rates of the grid rise to their peak."""


def grid(optimizer: str) -> list[float]:
    """Return the seven peak learning rates of an optimizer."""
    factor = 4.0 if optimizer == "lars" else 2.0
    return [LEAST[optimizer] * factor**k for k in range(7)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Searching(Run):
    """Describe a run of AutoWU that records when its warm-up ended and at which learning rate.

    Args:
        traced: If True, the run records the loss and the learning rate of each step.
    """

    traced: bool = False

    def extra(self, control: lb.Controller, record: lb.MemoryRecord) -> Extra:
        search = control.decider.state[0][0]
        rows = [
            (seen.loss or math.nan, seen.base_lr * decision.lr_multiplier)
            for seen, decision in record.steps
            if seen.finite
        ]
        ended = search.ended if search.ended is not None else math.nan
        return Extra(
            notes={
                "ended": round(ended, 6),
                "rate": float(f"{search.rate:.6g}"),
                "forced": float(
                    any(
                        words in decision.reason
                        for _, decision in record.steps
                        for words in ("no rise of the loss", "the highest learning rate")
                    )
                ),
            },
            trace=tuple((float(f"{loss:.5g}"), float(f"{lr:.5g}")) for loss, lr in rows)
            if self.traced
            else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFree(Run):
    """Describe a run of an optimizer that evaluates averaged weights."""

    @contextlib.contextmanager
    def judging(self, optimizer: Optimizer) -> Iterator[None]:
        optimizer.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            optimizer.train()  # type: ignore[attr-defined]


def searching(cell: Cell, seed: int, *, rule: lb.Rule | None = None, method: str = "AutoWU") -> Run:
    """Return a run of AutoWU with the optimizer's range of learning rates.

    Args:
        cell: Cell of the run.
        seed: Seed of the run.
        rule: Rule that takes the place of AutoWU; None for AutoWU.
        method: Name of the method.
    """
    low, high = RANGES[cell.optimizer]
    return Searching(
        workload=f"{cell.workload}+{cell.optimizer}",
        method=method,
        rule=rule or lb.chain(lb.AutoWarmUp(low=low, high=high)),
        scale=cell.scale,
        budget=lb.Budget(steps=cell.steps),
        seed=seed,
        lr=1.0,
        traced=seed == 0 and rule is None,
    )


def shortened(cell: Cell, seed: int) -> Run:
    """Return a run of AutoWU whose warm-up takes at most a quarter of the budget."""
    low, high = RANGES[cell.optimizer]
    rule = lb.chain(lb.AutoWarmUp(low=low, high=high, fraction=0.25))
    return searching(cell, seed, rule=rule, method="AutoWU, a quarter")


def peaked(cell: Cell, seed: int, *, lr: float, method: str = "grid", rise: float = WARM_UP) -> Run:
    """Return a run with a linear warm-up from 0 to a peak learning rate and a cosine decay to 0.

    Args:
        cell: Cell of the run.
        seed: Seed of the run.
        lr: Peak learning rate.
        method: Name of the method.
        rise: Fraction of the budget that the warm-up takes.
    """
    rule = lb.chain(lb.WarmUp(fraction=rise, start=0.0), lb.Schedule(factor=lb.Cosine()))
    return Run(
        workload=f"{cell.workload}+{cell.optimizer}",
        method=method,
        rule=rule,
        scale=cell.scale,
        budget=lb.Budget(steps=cell.steps),
        seed=seed,
        lr=lr,
    )


def as_they_come(cell: Cell, seed: int, optimizer: str, *, lr: float) -> Run:
    """Return a run of an optimizer that needs no schedule, at its default learning rate."""
    plain = peaked(cell, seed, lr=lr, method=optimizer)
    kind = ScheduleFree if optimizer == "schedule-free" else Run
    return kind(
        workload=f"{cell.workload}+{optimizer}", method=optimizer, rule=lb.chain(),
        scale=plain.scale, budget=plain.budget, seed=seed, lr=lr,
    )  # fmt: skip


def blind(run: Run, other: Result) -> Run:
    """Return a yoked run: its warm-up ends when and where that of another seed's run ended.

    Args:
        run: Run of AutoWU whose workload, seed and range are used.
        other: Result of the other seed.
    """
    (rule,) = run.rule.rules  # type: ignore[attr-defined]
    notes = other.extra.notes
    return Run(
        workload=run.workload, method="another seed's switch",
        rule=lb.chain(
            Replayed(low=rule.low, high=rule.high, fraction=rule.fraction,
                     ended=notes["ended"], rate=notes["rate"])
        ),
        scale=run.scale, budget=run.budget, seed=run.seed, lr=run.lr,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Follow AutoWU's schedule with a given end of the warm-up, and ignore the loss.

    Args:
        low, high, fraction: Settings of `AutoWarmUp`.
        ended: Fraction of the budget at which the warm-up ends.
        rate: Learning rate at which the decay starts.
    """

    low: float
    high: float
    fraction: float
    ended: float
    rate: float

    needs = frozenset({"budget"})
    changes = frozenset({"lr"})
    bounds: frozenset[str] = frozenset()
    forbids: frozenset[str] = frozenset()

    def init(self) -> None:
        return None

    def update(
        self, state: None, seen: lb.Measurement, proposed: lb.Decision
    ) -> tuple[None, lb.Decision]:
        x = seen.progress
        if x < self.ended:
            rate = self.low * (self.high / self.low) ** (x / self.fraction)
        else:
            rate = self.rate * lb.Cosine()((x - self.ended) / (1.0 - self.ended))
        return state, proposed.scaled(rate / seen.base_lr, because=f"replayed {rate:.4g}")
