"""Measure the critical batch size along training by the three methods of `largebatch critical`.

Each workload has its own optimizer and base learning rate.

- **Noise scale**: it is measured for each piece of one run at the base batch size. The 95 %
  confidence interval is computed from the steps of this run.
- **Branches** (Merrill et al., 2025, arXiv 2505.23971): from the start of each piece, training
  continues with 2, 4, 8, ... times the base batch size, for several seeds. A batch size holds if
  its loss exceeds that of the base batch size by at most the tolerance. The interval goes from a
  batch size that is shown to hold, at 95 % confidence, up to one that is shown not to hold, at 95 %
  confidence. The answer is at least the base batch size.
- **Sweep**: the workload is trained at each batch size to the same loss, with the best of several
  learning rates and as many seeds. The default loss is that of the base batch size after a quarter
  of the run, so the answer is about the start of the run. Two curves are fitted to the numbers of
  steps, and the 95 % confidence interval is that of the curve.

A method shows a rise if the interval of the last piece lies above that of the first piece; the two
may share one bound. The ratio of two answers is computed only if both intervals have an upper
bound. An interval without an upper bound easily overlaps other intervals.
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
from experiments.growth.recorded_texts import plain
from experiments.growth.setup import page_text
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
    """Describe one table: a workload with its own optimizer and base batch size.

    Args:
        workload: Name of the workload.
        samples: Number of samples of the base run.
        settings: Settings of all methods.
        methods: Names of the methods that are measured.
    """

    workload: str
    samples: int
    settings: Settings = field(default_factory=Settings)
    methods: tuple[CriticalMethod, ...] = CRITICAL_METHODS

    def run(self, method: CriticalMethod) -> Critic:
        """Return the run that measures the critical batch size by one method."""
        return Critic(
            workload=self.workload,
            method=method,
            rule=lb.chain(),
            budget=lb.Budget(samples=self.samples),
            settings=self.settings,
        )


LESS = Settings(seeds=5, points=4, doublings=4)
"""Settings of the larger workloads, which take less time than the default settings."""

CELLS: tuple[Cell, ...] = (
    Cell(workload="digits", samples=21_420),
    Cell(workload="fashion-cnn", samples=40_960, settings=LESS),
    Cell(workload="stdlib-narrow", samples=12_288, settings=LESS, methods=("noise", "branches")),
)
CUT: Mapping[str, str] = {
    "the sweep of the transformer": "the runs would take too long",
    "longer runs of the CNN and the transformer": "the runs would take too long",
}
"""What was not measured -> the reason."""


def measured(ledger: Ledger, cell: Cell) -> Critical:
    """Make or read all answers of a cell.

    Each method is one run, so that an interruption loses at most one method of one workload.
    """
    found = [answered(result) for result in ledger.results([cell.run(m) for m in cell.methods])]
    return replace(found[0], answers=tuple(answer for one in found for answer in one.answers))


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    every = {cell: measured(ledger, cell) for cell in CELLS}
    findings.text.append(summary(list(every.values())))
    for cell, found in every.items():
        findings.text.append(
            f"## {cell.workload}: {found.optimizer}, base batch size {found.base_batch_size}, "
            f"{found.budget_samples:,} samples"
        )
        findings.table(*_table(found))
        findings.text.append(verdict(found))
        findings.text.append("\n".join(_small_print(cell, found)))
        for name, batch in _named(found):
            if math.isfinite(batch.high):
                wide = batch.high - batch.low
                findings.add(f"{cell.workload}: {name}", batch.value, least=wide)
    findings.method(page_text(__doc__))
    findings.leave_out(CUT)
    return findings


def _table(found: Critical) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: one per piece, one for the whole run, one for the cost."""
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
    return ["piece of the run", *(NAMES[method] for method in ALONG), *families], rows


def _cost(answer: Answer, found: Critical) -> str:
    return f"{answer.samples:,} ({answer.samples / found.budget_samples:.3g} runs)"


def _small_print(cell: Cell, found: Critical) -> list[str]:
    """Return the assumptions and the notes of each method, as the command reported them."""
    return [
        f"- {_size(answer, cell)}. {plain('. '.join((answer.assumes, *answer.notes)))}."
        for answer in found.answers
    ]


def _size(answer: Answer, cell: Cell) -> str:
    """Return the name of a method, its number of seeds and the largest batch size it tried."""
    tried = [trial.batch_size for trial in answer.trials]
    tried += [run.batch_size for run in answer.runs]
    if not tried:
        return f"{NAMES[answer.method]}, 1 seed"
    return f"{NAMES[answer.method]}, {cell.settings.seeds} seeds, batch sizes up to {max(tried):,}"


def _named(found: Critical) -> list[tuple[str, Range]]:
    """Return the numbers of `expected.json`: those of the first piece and of the whole run."""
    (noise,) = (answer for answer in found.answers if answer.method == "noise")
    chosen = [(f"{NAMES[method]}, first piece", pieces(found, method)[0]) for method in ALONG]
    chosen.append((f"{NAMES['noise']}, whole run", noise.findings[-1]))
    chosen += zip((f"sweep, {family}" for family in FAMILIES), curves(found), strict=False)
    return [(name, finding.batch) for name, finding in chosen if finding.batch is not None]


def draw(ledger: Ledger, path: Path) -> None:
    """Draw the answers of all methods along the run, a panel per workload."""
    from experiments.lab.draw import figure

    drawn, (axes,) = figure(rows=1, columns=len(CELLS), width=4.2, height=3.9)
    for axis, cell in zip(axes, CELLS, strict=True):
        draw_on(axis, measured(ledger, cell))
        axis.set_title(cell.workload, fontsize=9)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7, frameon=False)
    drawn.savefig(path, dpi=110)


PART = Part(title="The critical batch size along training, by three methods", find=find, draw=draw)
