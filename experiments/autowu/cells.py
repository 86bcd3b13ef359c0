"""AutoWU, which is given no rate, beside a grid of rates for the same optimizer.

Each run takes the same steps. The grid has seven peak rates with a warm-up over 5 % and a cosine;
its best and its median rate are chosen on the validation loss. LSW is linear scaling of the rate
tuned for SGD at the base batch, with the same schedule. Schedule-free AdamW and Prodigy come as
they are. Blind runs repeat the switch and the rate that the next seed found.
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
"""What is measured: at the batches of one workload the same samples, three epochs of the CNN. The
rule's guards were chosen on digits."""

CUT: dict[str, str] = {
    "the CNN with LAMB, AdamW and AdamP at batches 128 and 256": "left out for their half hour",
    "the transformer with SGD and LAMB at batches 32 and 64": "left out for their half hour",
    "fashion-resnet8 with other optimizers than SGD": "left out for their half hour",
    "the transformer of 0.5M parameters": "four times as long as the narrow one",
}
"""What is not measured -> why."""

SHORTER = frozenset({("fashion-cnn", "sgd"), ("stdlib-narrow", "adamw")})
"""Where the warm-up is also tried with a quarter of the budget in place of a half."""

NEAR = {"accuracy": 0.005, "loss": 0.02}
"""AutoWU comes near the best of the grid where it is at most this far off."""

DEFAULTS = {"schedule-free": 0.0025, "prodigy": 1.0}
"""Optimizers without a schedule -> their default rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The results of a cell, seeds in order.

    Args:
        cell: which.
        searched, shorter, blind: of AutoWU, with half of its warm-up, and with the next seed's
            switch.
        rates: of the grid.
        grid: by rate.
        others: by name.
    """

    cell: Cell
    searched: list[Result]
    shorter: list[Result]
    blind: list[Result]
    rates: list[float]
    grid: list[list[Result]]
    others: dict[str, list[Result]]

    def validation(self, results: Sequence[Result]) -> float:
        """The mean by which rates are chosen; infinite where a run diverged."""
        if any(result.diverged for result in results):
            return float("inf")
        return mean([result.validation["loss"] for result in results]).value

    def nearest(self) -> int:
        """The rate of the grid that is nearest to those found."""
        logs = [math.log(result.told.notes["rate"]) for result in self.searched]
        found = math.fsum(logs) / len(logs)
        return min(range(len(self.rates)), key=lambda at: abs(math.log(self.rates[at]) - found))

    def ranked(self) -> list[int]:
        """Rates of the grid from the best to the worst."""
        return sorted(range(len(self.grid)), key=lambda at: self.validation(self.grid[at]))


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Makes, or reads, all runs of a cell."""
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
    findings.text.append(__doc__.split("\n\n", 1)[1].strip())
    findings.text.append(
        "Test losses are means over seeds; the difference is paired by seed, with its 95 % "
        "interval. Ended: at which part of the budget the warm-ups ended, with (n) where nothing "
        "ended n of them. The grid at that rate: at the rate of the grid nearest to those found; "
        "what is lost beyond it is the search's. A quarter: AutoWU with a quarter of the budget "
        "for its warm-up in place of a half. AutoWU costs one run, the grid seven."
    )
    header = ("cell", "AutoWU", "rates found", "ended", "best of the grid", "its rate",
              "AutoWU less best", "median of the grid", "the grid at that rate", "a quarter",
              "blind", "others")  # fmt: skip
    rows, near, above = [], 0, 0
    for cell in CELLS:
        found = measured(ledger, cell)
        row, is_near, is_above = _row(findings, found)
        rows.append(row)
        near, above = near + is_near, above + is_above
    findings.table(header, rows)
    findings.text.append(
        f"AutoWU is within {NEAR['accuracy']:.1%} of accuracy or {NEAR['loss']} of test loss of "
        f"the best of the grid in {near} of {len(rows)} cells, and better than its median in "
        f"{above}."
    )
    findings.add("near the best", float(near), least=1.5)
    findings.leave_out(CUT)
    return findings


def _row(findings: Findings, found: Found) -> tuple[list[str], bool, bool]:
    name, ranked = found.cell.name, found.ranked()
    best, middle = found.grid[ranked[0]], found.grid[ranked[len(ranked) // 2]]
    apart = [_test(a) - _test(b) for a, b in zip(found.searched, best, strict=True)]
    forced = sum(result.told.notes["forced"] for result in found.searched)
    losses = mean([_test(result) for result in found.searched])
    findings.add(f"{name}: AutoWU", losses, least=0.02)
    findings.add(f"{name}: AutoWU less best", mean(apart), least=0.02)
    others = {key: mean([_test(r) for r in row]).value for key, row in found.others.items()}
    row = [
        name,
        shown(losses),
        ", ".join(f"{result.told.notes['rate']:.2g}" for result in found.searched),
        ", ".join(f"{result.told.notes['ended']:.2f}" for result in found.searched)
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
    """A row a cell, of the first seed: loss with the posterior at the switch, and rate."""
    from experiments.lab.draw import COLOURS, figure, logarithmic

    from largebatch.rules.auto_warm_up.losses import Losses

    drawn, axes = figure(rows=len(CELLS), columns=2, width=4.6, height=2.2)
    for (left, right), cell in zip(axes, CELLS, strict=True):
        result = measured(ledger, cell).searched[0]
        losses, rates = zip(*result.told.trace, strict=True)
        end = round(result.told.notes["ended"] * cell.steps)
        left.plot(losses, color=COLOURS[0], lw=0.6, label="training loss")
        seen = Losses()
        for loss in losses[:end]:
            seen = seen.add(loss)
        curve = seen.curve()
        x, band = curve.x * end, 2.0 * (curve.spread**2).sum(1) ** 0.5
        left.plot(x, curve.mean, color=COLOURS[1], label="Gaussian process at the switch")
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


PART = Part(title="AutoWU beside a grid of rates", find=find, draw=draw, spots=True)
