"""Compare AutoWU, which needs no learning rate, with a grid of learning rates.

All runs of a row take equally many steps. The grid has seven peak learning rates with a warm-up
over 5 % of the run and a cosine decay. The best and the median learning rate of the grid are chosen
by the validation loss. AutoWU needs one run, and the grid needs seven.

Losses are test losses, as means over three seeds. The difference is paired by seed and has a 95 %
confidence interval. The other columns are:

- "peak learning rates": the learning rates at which AutoWU ended its warm-up, one per seed.
- "end of the warm-up": the fraction of the run at which the warm-up ended, one per seed. A number
  in parentheses counts the runs whose warm-up ended without a detected rise of the loss.
- "grid at AutoWU's peak": the run of the grid whose peak learning rate is nearest to the learning
  rates that AutoWU found.
- "AutoWU, short warm-up": the warm-up takes at most a quarter of the run in place of a half.
- "another seed's switch": a yoked run, whose warm-up ends when and where that of the next seed
  ended.
- "other methods": LSW is linear scaling of the learning rate that was tuned for SGD at the base
  batch size, with a warm-up over 5.5 % of the run and a cosine decay. Schedule-free AdamW and
  Prodigy run with their default learning rates.

The rows of one workload and optimizer train on equally many samples at each batch size; the CNN
with SGD trains for three epochs. The guards of AutoWU were chosen on digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.autowu.setup import (
    BASE_RATE,
    Cell,
    as_they_come,
    blind,
    grid,
    peaked,
    searching,
    shortened,
)
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Result, Run

CELLS: tuple[Cell, ...] = (
    *(Cell(workload="digits", optimizer=o, scale=8, steps=800)
      for o in ("sgd", "lamb", "lars", "adamw", "adamp")),
    *(Cell(workload="fashion-cnn", optimizer="sgd", scale=scale, steps=2580 // scale)
      for scale in (2, 4, 8)),
    *(Cell(workload="stdlib-narrow", optimizer="adamw", scale=scale, steps=2400 // scale)
      for scale in (2, 4, 8)),
    *(Cell(workload="fashion-cnn", optimizer=o, scale=8, steps=322)
      for o in ("lamb", "adamw", "adamp")),
    *(Cell(workload="stdlib-narrow", optimizer=o, scale=8, steps=300) for o in ("sgd", "lamb")),
    Cell(workload="fashion-resnet8", optimizer="sgd", scale=4, steps=300),
)  # fmt: skip
"""Cells of the page: one row of the table each."""

CUT: dict[str, str] = {
    "the CNN with LAMB, AdamW and AdamP at batch sizes 128 and 256": "the runs would take half an "
    "hour",
    "the transformer with SGD and LAMB at batch sizes 32 and 64": "the runs would take half an "
    "hour",
    "fashion-resnet8 with other optimizers than SGD": "the runs would take half an hour",
    "the transformer with 0.5M parameters": "a run takes four times as long as a run of the narrow "
    "transformer",
}
"""What was not measured -> the reason."""

SHORTER = frozenset({("fashion-cnn", "sgd"), ("stdlib-narrow", "adamw")})
"""(Workload, optimizer) of the cells in which a shorter warm-up is tried, too."""

NEAR = {"accuracy": 0.005, "loss": 0.02}
"""Metric -> largest difference at which AutoWU counts as close to the best of the grid."""

DEFAULTS = {"schedule-free": 0.0025, "prodigy": 1.0}
"""Optimizer without a schedule -> its default learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Hold the results of one cell, in order of seeds.

    Args:
        cell: The cell.
        searched: Results of AutoWU.
        shorter: Results of AutoWU with the shorter warm-up; empty if it was not tried.
        blind: Results of the yoked runs, whose warm-up ends as that of the next seed.
        rates: Peak learning rates of the grid.
        grid: Results for each learning rate of the grid.
        others: Name of another method -> its results.
    """

    cell: Cell
    searched: list[Result]
    shorter: list[Result]
    blind: list[Result]
    rates: list[float]
    grid: list[list[Result]]
    others: dict[str, list[Result]]

    def validation(self, results: Sequence[Result]) -> float:
        """Return the mean validation loss, by which learning rates are chosen; infinite if a run
        diverged."""
        if any(result.diverged for result in results):
            return float("inf")
        return mean([result.validation["loss"] for result in results]).value

    def nearest(self) -> int:
        """Return the index of the grid's learning rate that is nearest to those AutoWU found."""
        logs = [math.log(result.extra.notes["rate"]) for result in self.searched]
        found = math.fsum(logs) / len(logs)
        return min(range(len(self.rates)), key=lambda at: abs(math.log(self.rates[at]) - found))

    def ranked(self) -> list[int]:
        """Return the indices of the grid's learning rates from the best to the worst."""
        return sorted(range(len(self.grid)), key=lambda at: self.validation(self.grid[at]))


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Make or read all runs of a cell."""
    seeds, rates = range(cell.seeds), grid(cell.optimizer)
    runs: dict[str, list[Run]] = {"AutoWU": [searching(cell, seed) for seed in seeds]}
    if (cell.workload, cell.optimizer) in SHORTER:
        runs["shorter"] = [shortened(cell, seed) for seed in seeds]
    runs |= {f"{lr:g}": [peaked(cell, seed, lr=lr) for seed in seeds] for lr in rates}
    others: dict[str, list[Run]] = {}
    if cell.optimizer == "sgd" and cell.workload in BASE_RATE:
        scaled = BASE_RATE[cell.workload] * cell.scale
        others["LSW"] = [peaked(cell, s, lr=scaled, method="LSW", rise=0.055) for s in seeds]
    if cell.optimizer == "adamw":
        others |= {
            name: [as_they_come(cell, seed, name, lr=lr) for seed in seeds]
            for name, lr in DEFAULTS.items()
        }
    ledger.results([run for row in (*runs.values(), *others.values()) for run in row])
    searched = ledger.results(runs["AutoWU"])
    replayed = [
        blind(run, searched[(seed + 1) % cell.seeds]) for seed, run in enumerate(runs["AutoWU"])
    ]
    return Found(
        cell=cell,
        searched=searched,
        shorter=ledger.results(runs.get("shorter", [])),
        blind=ledger.results(replayed),
        rates=rates,
        grid=[ledger.results(runs[f"{lr:g}"]) for lr in rates],
        others={name: ledger.results(row) for name, row in others.items()},
    )


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    header = ("workload, optimizer, batch size", "AutoWU", "peak learning rates",
              "end of the warm-up", "best of the grid", "best learning rate of the grid",
              "AutoWU minus the best of the grid", "median of the grid", "grid at AutoWU's peak",
              "AutoWU, short warm-up", "another seed's switch", "other methods")  # fmt: skip
    rows, near, above = [], 0, 0
    for cell in CELLS:
        found = measured(ledger, cell)
        row, is_near, is_above = _row(findings, found)
        rows.append(row)
        near, above = near + is_near, above + is_above
    findings.text.append(
        "Is AutoWU, which needs no learning rate, as good as the best learning rate of a grid? In "
        f"{near} of {len(rows)} rows, AutoWU is at most {NEAR['accuracy']:.1%} in test accuracy or "
        f"{NEAR['loss']} in test loss worse than the best of seven learning rates. In {above} rows "
        "AutoWU is at least as good as the median of the seven learning rates."
    )
    findings.table(header, rows)
    findings.method(__doc__.split("\n\n", 1)[1])
    findings.add("near the best", float(near), least=1.5)
    findings.leave_out(CUT)
    return findings


def _row(findings: Findings, found: Found) -> tuple[list[str], bool, bool]:
    name, ranked = found.cell.name, found.ranked()
    best, middle = found.grid[ranked[0]], found.grid[ranked[len(ranked) // 2]]
    apart = [_test(a) - _test(b) for a, b in zip(found.searched, best, strict=True)]
    forced = sum(result.extra.notes["forced"] for result in found.searched)
    losses = mean([_test(result) for result in found.searched])
    findings.add(f"{name}: AutoWU", losses, least=0.02)
    findings.add(f"{name}: AutoWU less best", mean(apart), least=0.02)
    others = {key: mean([_test(r) for r in row]).value for key, row in found.others.items()}
    row = [
        name,
        shown(losses),
        ", ".join(f"{result.extra.notes['rate']:.2g}" for result in found.searched),
        ", ".join(f"{result.extra.notes['ended']:.2f}" for result in found.searched)
        + (f" ({forced:.0f})" if forced else ""),
        f"{mean([_test(result) for result in best]).value:.3f}",
        f"{found.rates[ranked[0]]:g}",
        shown(mean(apart), sign=True),
        f"{mean([_test(r) for r in middle]).value:.3f}",
        f"{mean([_test(result) for result in found.grid[found.nearest()]]).value:.3f}",
        f"{mean([_test(result) for result in found.shorter]).value:.3f}" if found.shorter else "",
        f"{mean([_test(result) for result in found.blind]).value:.3f}",
        ", ".join(f"{key} {loss:.3f}" for key, loss in others.items()),
    ]
    near = mean(apart).value <= NEAR["loss"]
    if "accuracy" in best[0].test:
        gaps = [
            b.test["accuracy"] - a.test.get("accuracy", 0.0)
            for a, b in zip(found.searched, best, strict=True)
        ]
        near = near or mean(gaps).value <= NEAR["accuracy"]
    return row, near, losses.value <= mean([_test(r) for r in middle]).value


def _test(result: Result) -> float:
    return float("inf") if result.diverged else result.test["loss"]


def draw(ledger: Ledger, path: Path) -> None:
    """Draw the loss and the learning rate of the first seed, one row per cell.

    The panel of the loss shows the Gaussian process that AutoWU had when its warm-up ended.
    """
    from experiments.lab.draw import COLOURS, figure, logarithmic

    from largebatch.rules.auto_warm_up.losses import Losses

    drawn, axes = figure(rows=len(CELLS), columns=2, width=4.6, height=2.2)
    for (left, right), cell in zip(axes, CELLS, strict=True):
        result = measured(ledger, cell).searched[0]
        losses, rates = zip(*result.extra.trace, strict=True)
        end = round(result.extra.notes["ended"] * cell.steps)
        left.plot(losses, color=COLOURS[0], lw=0.6, label="training loss")
        seen = Losses()
        for loss in losses[:end]:
            seen = seen.add(loss)
        curve = seen.curve()
        x, band = curve.x * end, 2.0 * (curve.spread**2).sum(1) ** 0.5
        left.plot(x, curve.mean, color=COLOURS[1], label="Gaussian process at the warm-up's end")
        left.fill_between(x, curve.mean - band, curve.mean + band, color=COLOURS[1], alpha=0.3)
        right.plot(rates, color=COLOURS[2])
        logarithmic(left, bottom=max(0.8 * min(losses), 1e-2))
        right.set_yscale("log")
        for axis in (left, right):
            axis.axvline(end, color=COLOURS[3], lw=1, ls="--")
            axis.set_title(cell.name, fontsize=9)
        left.set_ylabel("loss")
        right.set_ylabel("learning rate")
    for axis in axes[-1]:
        axis.set_xlabel("steps")
    axes[0][0].legend(frameon=False, fontsize=7)
    drawn.savefig(path, dpi=100)


PART = Part(title="AutoWU compared with a grid of learning rates", find=find, draw=draw, spots=True)
