"""Define the cells and rows of the tables, and choose the learning rate of each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from experiments.lab.findings import mean
from experiments.lab.ledger import Ledger
from experiments.lab.run import Extra, Result, Run
from torch import nn

import largebatch as lb

TUNING, REPORTED = 3, 5
"""Number of seeds that choose the learning rate by their validation loss, and number of seeds that
are reported at this learning rate."""

LEAST = {"sgd": 0.01, "adagrad": 0.0025, "adagrad-norm": 0.125, "adamw": 5e-4}
"""Optimizer -> smallest of seven learning rates, each twice the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Describe one table: a workload and an optimizer with a budget of samples.

    Args:
        workload, optimizer: Names of the workload and of the optimizer.
        start: Batch size of the first step of the growing runs, in samples.
        samples: Number of samples of each run.
        doublings: Number of doublings from `start` to the largest constant batch size.
        schedule: Schedule of the learning rate: "constant", or "peaked" for a warm-up over a tenth
            of the run and a cosine decay.
        micro_batch: Largest number of samples in one micro-batch.
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
        """Return the name of the cell in `expected.json`."""
        rate = "constant rate" if self.schedule == "constant" else "warm-up and cosine"
        return f"{self.workload}, {self.optimizer}, {rate}"

    @property
    def title(self) -> str:
        """Return the heading of the cell's table."""
        return self.name.replace("constant rate", "constant learning rate")

    @property
    def statistic(self) -> Literal["moments", "preconditioned_moments"]:
        """Return the name of the statistic that the norm test of this optimizer reads."""
        plain = self.optimizer in ("sgd", "adagrad-norm")
        return "moments" if plain else "preconditioned_moments"

    @property
    def rates(self) -> list[float]:
        """Return the seven learning rates that are tried, in increasing order."""
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
        """Return a run of these rules, followed by the schedule of the learning rate.

        Args:
            method: Name of the method.
            rules: Rules that decide before the schedule.
            lr: Base learning rate.
            seed: Seed of the run.
            batch: Batch size of the first step in samples; None for the cell's `start`.
        """
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
            # The seeds that do not choose a learning rate also record a validation curve.
            evaluations=1 if seed < TUNING else 8,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Growing(Run):
    """Describe a run whose batch size may grow, with noise measured from single examples.

    The trace of the run has a row (samples so far, batch size) for each change of the batch size.
    """

    def meter(self, model: nn.Module) -> lb.Meter:
        return lb.Meter(model, examples=lb.PerExample())

    def extra(self, control: lb.Controller, record: lb.MemoryRecord) -> Extra:
        rows: list[tuple[float, ...]] = []
        for seen, _ in list(record.steps)[:-1]:  # The last step has only the remaining samples.
            if not rows or rows[-1][1] != seen.batch_size:
                rows.append((seen.samples, seen.batch_size))
        return Extra(trace=tuple(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Use the batch sizes that another run recorded, and ignore the noise of this run.

    Args:
        batches: Rows (samples so far, batch size), in increasing order of samples.
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
"""Function that returns a run for a learning rate and a seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Hold the results of a method at the learning rate that is best for it.

    Args:
        name: Name of the row in tables.
        lr: Learning rate with the lowest validation loss.
        at_edge: If True, `lr` is the smallest or the largest of the learning rates that were tried.
        results: Results of the reported seeds at `lr`.
        make: Function that returns the run of a learning rate and a seed.
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
        """Return the mean batch size: samples divided by steps, as a mean over seeds."""
        return mean([result.samples / result.steps for result in self.results]).value

    def losses(self, split: Literal["validation", "test"] = "test") -> list[float]:
        """Return the loss of each seed on a split; infinite for a diverged run."""
        return [float("inf") if r.diverged else getattr(r, split)["loss"] for r in self.results]


def tuned(
    ledger: Ledger,
    rates: Sequence[float],
    rows: Mapping[str, Make],
    *,
    seeds: Sequence[int] = range(TUNING),
) -> dict[str, Row]:
    """Return each row at its best learning rate.

    Args:
        ledger: Ledger that makes or reads the runs.
        rates: Learning rates that are tried.
        rows: Name of a row -> function that returns its runs.
        seeds: Seeds whose mean validation loss chooses the learning rate.
    """
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
