"""The critical batch along training, by three methods.

What `largebatch critical` says of workloads as they are, at their own rate.
The noise scale is that of each piece of one run at the base batch, with the interval over the steps
of that run. Branches go on from the beginning of each piece with two, four, eight, ... times the
batch (Merrill et al., 2025, arXiv 2505.23971); several seeds. The sweep trains at each batch to one
loss, by default that of the base batch after a quarter of the run, at the best of its rates, with
as many seeds, and lays two families of curves through the steps; it speaks of the run's beginning.

An interval has 95 %: of the noise scale and of the curves as a whole; that of branches goes from a
batch that surely holds up to one that surely does not, each by itself, and their answer is at least
the base batch. A method shows a rise where the last piece's interval lies above the first's, with
an end in common at most: a batch that surely was too large then surely holds. A factor is the
larger of two numbers over the smaller, where both intervals have an upper end; an interval without
one overlaps others easily.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.growth.agreement import (
    ALONG,
    FAMILIES,
    NAMES,
    curves,
    pieces,
    summary,
    verdict,
)
from experiments.growth.setup import said
from experiments.lab.critical import Critic, answered
from experiments.lab.findings import Findings
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part

import largebatch as lb
from largebatch.analysis.efficiency import Range
from largebatch.workbench.cli.pictures.critical import draw_on
from largebatch.workbench.studies.critical.result import Critical
from largebatch.workbench.studies.critical.settings import (
    CRITICAL_METHODS,
    CriticalMethod,
    Settings,
)
from largebatch.workbench.studies.critical.values import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A workload with its own optimizer and base batch.

    Args:
        workload: by name.
        samples: of the base run.
        settings: of all methods.
        methods: that are measured.
    """

    workload: str
    samples: int
    settings: Settings = field(default_factory=Settings)
    methods: tuple[CriticalMethod, ...] = CRITICAL_METHODS

    def run(self, method: CriticalMethod) -> Critic:
        """What is measured of it by a method."""
        return Critic(
            workload=self.workload,
            method=method,
            rule=lb.chain(),
            budget=lb.Budget(samples=self.samples),
            settings=self.settings,
        )


LESS = Settings(seeds=5, points=4, doublings=4)

CELLS: tuple[Cell, ...] = (
    Cell(workload="digits", samples=21_420),
    Cell(workload="fashion-cnn", samples=40_960, settings=LESS),
    Cell(workload="stdlib-narrow", samples=12_288, settings=LESS, methods=("noise", "branches")),
)
CUT: Mapping[str, str] = {
    "the transformer's sweep": "left out for its time",
    "longer runs of the CNN and the transformer": "left out for their time",
}
"""What is not measured -> why."""


def measured(ledger: Ledger, cell: Cell) -> Critical:
    """Makes, or reads, all answers of a cell: one call of `critical` for each method, so that an
    interrupted part loses one method of one workload."""
    found = [answered(result) for result in ledger.results([cell.run(m) for m in cell.methods])]
    return replace(found[0], answers=tuple(answer for one in found for answer in one.answers))


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(said(__doc__))
    every = {cell: measured(ledger, cell) for cell in CELLS}
    findings.text.append(summary(list(every.values())))
    for cell, found in every.items():
        findings.text.append(
            f"## {cell.workload}: {found.optimizer}, base batch {found.base_batch_size}, "
            f"{found.budget_samples:,} samples"
        )
        findings.table(*_table(found))
        findings.text.append(verdict(found))
        findings.text.append("\n".join(_small_print(cell, found)))
        for name, batch in _named(found):
            if math.isfinite(batch.high):
                wide = batch.high - batch.low
                findings.add(f"{cell.workload}: {name}", batch.value, least=wide)
    findings.leave_out(CUT)
    return findings


def _table(found: Critical) -> tuple[list[str], list[list[str]]]:
    """A row a piece, then what holds for the whole run, then the costs."""
    by = {answer.method: answer for answer in found.answers}
    families = [f"sweep, {family}" for family in FAMILIES if "sweep" in by]
    blank = [""] * len(families)
    rows = [
        [one.where, str(one), str(other), *blank]
        for one, other in zip(pieces(found, "noise"), pieces(found, "branches"), strict=True)
    ]
    swept = [str(curve) for curve in curves(found)]
    whole = by["noise"].findings[-1]
    rows.append(["whole run", str(whole), "", *(swept + blank)[: len(families)]])
    costs = [_cost(by[method], found) for method in NAMES if method in by]
    rows.append(["samples spent", *costs, *["the same"][: len(families)]])
    return ["of the run", *(NAMES[method] for method in ALONG), *families], rows


def _cost(answer: Answer, found: Critical) -> str:
    return f"{answer.samples:,} ({answer.samples / found.budget_samples:.3g} runs)"


def _small_print(cell: Cell, found: Critical) -> list[str]:
    """What each method assumes, in its own words, and what it left out."""
    return [
        f"- {_size(answer, cell)}: {'. '.join((answer.assumes, *answer.notes))}."
        for answer in found.answers
    ]


def _size(answer: Answer, cell: Cell) -> str:
    """Seeds, and the largest batch that was tried."""
    tried = [trial.batch_size for trial in answer.trials]
    tried += [run.batch_size for run in answer.runs]
    if not tried:
        return f"{NAMES[answer.method]}, 1 seed"
    return f"{NAMES[answer.method]}, {cell.settings.seeds} seeds, batches up to {max(tried):,}"


def _named(found: Critical) -> list[tuple[str, Range]]:
    """Numbers by name: of the first pieces, and of whole runs."""
    (noise,) = (answer for answer in found.answers if answer.method == "noise")
    chosen = [(f"{NAMES[method]}, first piece", pieces(found, method)[0]) for method in ALONG]
    chosen.append((f"{NAMES['noise']}, whole run", noise.findings[-1]))
    chosen += zip((f"sweep, {family}" for family in FAMILIES), curves(found), strict=False)
    return [(name, finding.batch) for name, finding in chosen if finding.batch is not None]


def draw(ledger: Ledger, path: Path) -> None:
    """A panel a workload."""
    from experiments.lab.draw import figure

    drawn, (axes,) = figure(rows=1, columns=len(CELLS), width=4.2, height=3.9)
    for axis, cell in zip(axes, CELLS, strict=True):
        draw_on(axis, measured(ledger, cell))
        axis.set_title(cell.workload, fontsize=9)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7, frameon=False)
    drawn.savefig(path, dpi=110)


PART = Part(title="The critical batch along training, by three methods", find=find, draw=draw)
