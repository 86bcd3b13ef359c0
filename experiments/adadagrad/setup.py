"""What the parts of the experiment share: cells, rows of runs, and the rate chosen for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from experiments.lab.findings import mean
from experiments.lab.ledger import Ledger
from experiments.lab.run import Result, Run, Told
from torch import nn

import largebatch as lb

TUNING, REPORTED = 3, 5
"""Seeds by whose validation loss a rate is chosen, and seeds that are reported at it."""

LEAST = {"sgd": 0.01, "adagrad": 0.0025, "adagrad-norm": 0.125, "adamw": 5e-4}
"""Optimizer -> the least of seven rates, each twice the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A workload with an optimizer, at a budget of samples.

    Args:
        workload, optimizer: by name.
        start: batch of the growing runs' first step, in samples.
        samples: of each run.
        doublings: the largest constant batch is start times two to this power.
        schedule: "constant", or "peaked" for a warm-up over a tenth and a cosine.
        micro_batch: most samples of one backward.
    """

    workload: str
    optimizer: str
    start: int
    samples: int
    doublings: int
    schedule: Literal["constant", "peaked"]
    micro_batch: int = 256

    @property
    def name(self) -> str:
        """In tables."""
        rate = "constant rate" if self.schedule == "constant" else "warm-up and cosine"
        return f"{self.workload}, {self.optimizer}, {rate}"

    @property
    def statistic(self) -> Literal["moments", "preconditioned_moments"]:
        """What the optimizer's own test reads."""
        plain = self.optimizer in ("sgd", "adagrad-norm")
        return "moments" if plain else "preconditioned_moments"

    @property
    def rates(self) -> list[float]:
        """Seven."""
        return [LEAST[self.optimizer] * 2.0**k for k in range(7)]

    def run(
        self,
        method: str,
        rules: Iterable[lb.Rule],
        *,
        lr: float,
        seed: int,
        batch: int | None = None,
    ) -> Growing:
        """A run of these rules, with the cell's schedule of the rate behind them."""
        schedule: tuple[lb.Rule, ...] = ()
        if self.schedule == "peaked":
            schedule = (lb.WarmUp(fraction=0.1, start=0.0), lb.Schedule(factor=lb.Cosine()))
        return Growing(
            workload=f"{self.workload}@{batch or self.start}+{self.optimizer}",
            method=method,
            rule=lb.chain(*rules, *schedule),
            budget=lb.Budget(samples=self.samples),
            seed=seed,
            lr=lr,
            micro_batch=self.micro_batch,
            # the seeds that choose no rate show how the loss falls
            evaluations=1 if seed < TUNING else 8,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Growing(Run):
    """A run whose batch may grow, measured by its single examples; it tells (samples before, batch)
    wherever the batch changes."""

    def meter(self, model: nn.Module) -> lb.Meter:
        return lb.Meter(model, examples=lb.PerExample())

    def told(self, control: lb.Controller, record: lb.MemoryRecord) -> Told:
        rows: list[tuple[float, ...]] = []
        for seen, _ in list(record.steps)[:-1]:  # the last batch takes what is left
            if not rows or rows[-1][1] != seen.batch_size:
                rows.append((seen.samples, seen.batch_size))
        return Told(trace=tuple(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The batches of another run, whatever this run's own noise.

    Args:
        batches: (samples before it, batch) in order.
    """

    batches: tuple[tuple[float, ...], ...]

    needs: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[frozenset[str]] = frozenset({"batch"})
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()

    def init(self) -> None:
        return None

    def update(
        self, state: None, seen: lb.Measurement, proposed: lb.Decision
    ) -> tuple[None, lb.Decision]:
        done = seen.samples + seen.batch_size
        size = int([batch for samples, batch in self.batches if samples <= done][-1])
        return state, proposed.resized(size, because=f"replayed {size}")


Make = Callable[[float, int], Run]
"""From a rate and a seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method at the rate that is best for it.

    Args:
        name: in tables.
        lr: chosen by validation.
        at_edge: whether it is the first or last of the rates.
        results: of the reported seeds, at that rate.
    """

    name: str
    lr: float
    at_edge: bool
    results: list[Result]
    make: Make = field(repr=False)

    @property
    def diverged(self) -> bool:
        return any(result.diverged for result in self.results)

    @property
    def steps(self) -> float:
        return mean([float(result.steps) for result in self.results]).value

    @property
    def batch(self) -> float:
        """Samples a step."""
        return mean([result.samples / result.steps for result in self.results]).value

    def losses(self, split: Literal["validation", "test"] = "test") -> list[float]:
        """By seed; infinite where a run diverged."""
        return [float("inf") if r.diverged else getattr(r, split)["loss"] for r in self.results]


def tuned(
    ledger: Ledger,
    rates: Sequence[float],
    rows: Mapping[str, Make],
    *,
    seeds: Sequence[int] = range(TUNING),
) -> dict[str, Row]:
    """Each row at the best of these rates, by the validation loss of these seeds."""
    tuning = {
        name: [[make(lr, seed) for seed in seeds] for lr in rates] for name, make in rows.items()
    }
    ledger.results([run for table in tuning.values() for runs in table for run in runs])
    found = {}
    for name, table in tuning.items():
        losses = [_validation(ledger.results(runs)) for runs in table]
        best = losses.index(min(losses))
        found[name] = [rows[name](rates[best], seed) for seed in range(REPORTED)]
    ledger.results([run for runs in found.values() for run in runs])
    return {
        name: Row(
            name=name,
            lr=runs[0].lr or 0.0,
            at_edge=runs[0].lr in (rates[0], rates[-1]),
            results=ledger.results(runs),
            make=rows[name],
        )
        for name, runs in found.items()
    }


def _validation(results: Sequence[Result]) -> float:
    if any(result.diverged for result in results):
        return float("inf")
    return mean([result.validation["loss"] for result in results]).value
