"""Define the cells, runs and table columns that the pages on growing batch sizes share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from experiments.adadagrad.setup import REPORTED, Growing, Make, Row
from experiments.adadagrad.setup import tuned as tuned_rows
from experiments.lab import workloads
from experiments.lab.findings import mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.run import Result
from torch import nn

import largebatch as lb
from largebatch.analysis.student import Mean
from largebatch.workbench.workloads import Split, Workload
from largebatch.workbench.workloads.data import in_batches

TUNING = (5, 6, 7)
"""Seeds that choose the learning rate by their validation loss. Other seeds are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Describe one table: a workload and an optimizer with a budget of samples.

    Args:
        workload, optimizer: Names of the workload and of the optimizer.
        start: Batch size of the first step of the growing runs, in samples.
        samples: Number of samples of each run.
        doublings: Number of doublings from `start` to the largest constant batch size.
        least: Smallest of seven base learning rates, each twice the one before.
        micro_batch: Largest number of samples in one micro-batch.
        points: Number of points of the validation curve of a reported run.
    """

    workload: str
    optimizer: str
    start: int
    samples: int
    doublings: int = 0
    least: float
    micro_batch: int = 256
    points: int = 8

    @property
    def name(self) -> str:
        """Return the name of the cell in tables and in `expected.json`."""
        return f"{self.workload}, {self.optimizer}"

    @property
    def rates(self) -> list[float]:
        """Return the seven base learning rates that are tried, in increasing order."""
        return [self.least * 2.0**k for k in range(7)]

    @property
    def batches(self) -> list[int]:
        """Return the constant batch sizes, in increasing order."""
        return [self.start * 2**k for k in range(self.doublings + 1)]

    def run(self, method: str, rule: lb.Rule, *, lr: float, seed: int, batch: int = 0) -> Watched:
        """Return a run whose learning rate and batch size this rule decides.

        Args:
            method: Name of the method.
            rule: Rule that decides.
            lr: Base learning rate.
            seed: Seed of the run.
            batch: Batch size of the first step in samples; 0 for the cell's `start`.
        """
        reported = seed < REPORTED
        return Watched(
            workload=f"{self.workload}@{batch or self.start}+{self.optimizer}",
            method=method,
            rule=lb.chain(rule),
            budget=lb.Budget(samples=self.samples),
            seed=seed,
            lr=lr,
            micro_batch=self.micro_batch,
            evaluations=self.points if reported else 1,
            full_gradient=reported and self.optimizer == "sgd-plain",
        )

    def make(self, method: str, rule: lb.Rule, *, batch: int = 0) -> Make:
        """Return the function that gives the run of a row for a learning rate and a seed."""
        return lambda lr, seed: self.run(method, rule, lr=lr, seed=seed, batch=batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Growing):
    """Describe a run whose curve may hold the norm of the full gradient.

    Args:
        full_gradient: If True, each point of the curve holds the norm of the full gradient.
    """

    full_gradient: bool = False

    def look(self, model: nn.Module) -> tuple[float, ...]:
        if not self.full_gradient:
            return ()
        workload = workloads.workload(self.workload)
        return (full_gradient_norm(model, workload, workloads.data(self.workload).seen),)


def full_gradient_norm(model: nn.Module, workload: Workload, split: Split) -> float:
    """Return the norm of the gradient of the mean loss over a split.

    The gradient is computed with a copy of the model, so that no hook of the model sees it.
    """
    with torch.random.fork_rng():
        copy, _ = workload.fresh(seed=0)
    copy.load_state_dict(model.state_dict())
    copy.eval()
    parameters = list(copy.parameters())
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    count = 0
    for batch in in_batches(split, workload.micro_batch_size):
        samples = len(batch[0])
        count += samples
        loss = workload.loss(copy, batch)
        for total, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
            total.add_(gradient, alpha=samples)
    return math.sqrt(math.fsum(float(total.square().sum()) for total in sums)) / count


def tuned(ledger: Ledger, cell: Cell, rows: Mapping[str, Make]) -> dict[str, Row]:
    """Return each row at the best base learning rate of the cell."""
    return tuned_rows(ledger, cell.rates, rows, seeds=TUNING)


def at(ledger: Ledger, lr: float, name: str, make: Make) -> Row:
    """Return a row at a given base learning rate."""
    runs = [make(lr, seed) for seed in range(REPORTED)]
    return Row(name=name, lr=lr, at_edge=False, results=ledger.results(runs), make=make)


def record_of(ledger: Ledger, part: str) -> Ledger:
    """Return the ledger of another part, whose recorded runs this part also uses."""
    return Ledger(ledger.path.with_name(f"{part}.jsonl"), workers=ledger.workers)


def norms(row: Row, *, least: bool = False) -> list[float]:
    """Return the norm of the full gradient for each seed.

    Args:
        row: Row of the table.
        least: If True, the smallest norm of the curve is returned; if False, the norm at the end.
    """
    return [_norm(result, least=least) for result in row.results]


def _norm(result: Result, *, least: bool) -> float:
    values = [point[4] for point in result.curve]
    return min(values) if least else values[-1]


def apart(values: Iterable[float], others: Iterable[float]) -> Mean:
    """Return the mean difference of paired values, with its 95 % confidence interval."""
    return mean([a - b for a, b in zip(values, others, strict=True)])


def direction(difference: Mean) -> str:
    """Return what the interval of a difference shows: lower, higher or not shown to differ."""
    assert difference.low is not None
    assert difference.high is not None
    if difference.high < 0.0:
        return "lower"
    return "higher" if difference.low > 0.0 else "not shown to differ"


def dominates(row: Row, other: Row) -> bool:
    """Return whether a row has at most as many steps and a lower mean test loss than another."""
    if row.diverged or other.diverged:
        return other.diverged and not row.diverged
    return row.steps <= other.steps and mean(row.losses()).value < mean(other.losses()).value


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


HEADER = ("row", "base learning rate", "steps", "samples", "mean batch size")
"""First columns of the tables."""


def clocks(row: Row) -> list[str]:
    """Return the texts of a row in the columns of `HEADER`."""
    samples = mean([r.samples + r.extra.notes.get("passes", 0.0) for r in row.results]).value
    rate = f"{row.lr:.4g}" + (" (edge)" if row.at_edge else "")
    return [row.name, rate, f"{row.steps:.0f}", f"{samples:.0f}", f"{row.batch:.0f}"]


def losses(row: Row, own: Row) -> list[str]:
    """Return the texts of test loss, accuracy if there is one, and the difference to a row."""
    metric = ["accuracy"] * ("accuracy" in _first(own).test)
    if row.diverged:
        lost = sum(result.diverged for result in row.results)
        return [f"{lost} of {len(row.results)} diverged", *[""] * len(metric), ""]
    return [
        shown(mean(row.losses())),
        *[f"{mean([r.test[name] for r in row.results]).value:.1%}" for name in metric],
        "" if row is own else shown(apart(row.losses(), own.losses()), sign=True),
    ]


def _first(row: Row) -> Result:
    return row.results[0]


def page_text(doc: str) -> str:
    """Return the docstring of a module without its first paragraph, for the page of the module."""
    return doc.split("\n\n", 1)[1].strip()


DIGITS = Cell(
    workload="digits", optimizer="sgd-plain", start=16, samples=20_000, doublings=5, least=0.05
)
CNN = Cell(
    workload="fashion-cnn", optimizer="sgd-plain", start=32, samples=27_500, doublings=4,
    least=0.025, points=4,
)  # fmt: skip
