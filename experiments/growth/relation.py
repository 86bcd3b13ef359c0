"""Growth by the clock, on the relation of its stages and off it, beside every constant batch.

SGD without momentum, of which the theory speaks. Each row trains on the same samples, at the best
of seven rates for it by the validation loss of three seeds; five others are reported. Growing
batches begin with the least constant one and double four times. On the relation each stage takes
(2 / gamma)^2 times the samples of the one before it, where gamma is the rate's growth; off it all
take the same. The mean batch of a pair differs, and with it its steps: both are shown. The full
gradient is that of the training set, or of at most 10,000 samples that lie evenly in it; the
samples it takes are not counted. Its least norm is that of the eight points of a run's curve, four
on the CNN, the end among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.adadagrad.setup import Make, Row
from experiments.growth.setup import (
    CNN,
    DIGITS,
    HEADER,
    Cell,
    apart,
    clocks,
    direction,
    dominates,
    listed,
    losses,
    norms,
    said,
    tuned,
)
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part

import largebatch as lb
from largebatch import methods

CELLS: tuple[Cell, ...] = (DIGITS, CNN)
CUT: dict[str, str] = {
    "momentum": "the bound is that of plain SGD",
    "ResNet-8 on Fashion-MNIST": "left out for its hours",
    "gamma 1.4 on the CNN": "the root of 2 stands for it",
}
"""What is not measured -> why."""

EQUAL = (1.0,) * 5
COSINE = lb.Schedule(factor=lb.Cosine())
GAMMAS: Mapping[str, float | None] = {"1": 1.0, "1.4": 1.4, "sqrt 2": None}
"""Growth of the rate from stage to stage; None follows the batch as its root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The rows of a cell.

    Args:
        constant: at a constant rate and with a cosine, from the least batch to the largest.
        pairs: gamma -> on the relation, off it.
        others: rows that grow in other ways.
        best: of the constant ones, by the validation loss.
    """

    constant: list[Row]
    pairs: dict[str, tuple[Row, Row]]
    others: list[Row]
    best: Row

    @property
    def growing(self) -> list[Row]:
        return [row for pair in self.pairs.values() for row in pair] + self.others


def constants(cell: Cell) -> dict[str, Make]:
    """Rows at a constant rate, then those with a cosine."""
    return {
        f"batch {batch}{named}": cell.make(f"batch {batch}{named}", rule, batch=batch)
        for named, rule in (("", lb.chain()), (", cosine", COSINE))
        for batch in cell.batches
    }


def pairs(cell: Cell) -> dict[str, tuple[Make, Make]]:
    """Growth on the relation and off it, by gamma."""
    return {
        name: (
            cell.make(f"gamma {name}, on", methods.growth(gamma=gamma)),
            cell.make(f"gamma {name}, off", methods.growth(gamma=gamma, lengths=EQUAL)),
        )
        for name, gamma in GAMMAS.items()
        if name != "1.4" or cell is DIGITS
    }


def others(cell: Cell) -> dict[str, Make]:
    """Growth in other ways, to about the same last batch."""
    decaying = lb.chain(methods.growth(gamma=1.0, lengths=EQUAL), COSINE)
    rules: dict[str, lb.Rule] = {
        "linear growth": methods.linear_growth(step=2.0, stages=8),
        "growth, cosine": decaying,
        "growth, warm-up and cosine": methods.warmup_growth(stages=5),
    }
    return {name: cell.make(name, rule) for name, rule in rules.items()}


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Makes, or reads, all runs of a cell."""
    on_off = {
        f"gamma {name}, {side}": make
        for name, pair in pairs(cell).items()
        for side, make in zip(("on", "off"), pair, strict=True)
    }
    rows = tuned(ledger, cell, constants(cell) | on_off | others(cell))
    constant = [rows[name] for name in constants(cell)]
    return Found(
        constant=constant,
        pairs={
            name: (rows[f"gamma {name}, on"], rows[f"gamma {name}, off"]) for name in pairs(cell)
        },
        others=[rows[name] for name in others(cell)],
        best=min(constant, key=lambda row: mean(row.losses("validation")).value),
    )


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(said(__doc__))
    findings.text.append(
        "Means over seeds with their 95 % intervals; the last column is the test loss less that of "
        "the constant row with the least validation loss, paired by seed. A row dominates another "
        "where it has no more steps and a lower mean test loss."
    )
    for cell in CELLS:
        found = measured(ledger, cell)
        findings.text.append(f"## {cell.name}, {cell.samples} samples")
        findings.table(
            (*HEADER, "full gradient", "its least", "test loss", "accuracy", "less the best's"),
            [_row(row, found.best) for row in (*found.constant, *found.growing)],
        )
        findings.text.append(_verdict(found))
        for row in (found.best, *found.growing):
            if not row.diverged:
                name = "best constant" if row is found.best else row.name
                findings.add(f"{cell.name}: {name}: test loss", mean(row.losses()), least=0.02)
                norm = mean(norms(row))
                findings.add(f"{cell.name}: {name}: gradient", norm, least=0.2 * norm.value)
    findings.leave_out(CUT)
    return findings


def _row(row: Row, best: Row) -> list[str]:
    if row.diverged:
        return [*clocks(row), "", "", *losses(row, best)]
    norm = [shown(mean(norms(row, least=least))) for least in (False, True)]
    return [*clocks(row), *norm, *losses(row, best)]


def _verdict(found: Found) -> str:
    """What the table shows of each pair, and of growth beside constant batches."""
    words = []
    for name, (on, off) in found.pairs.items():
        if on.diverged or off.diverged:
            words.append(f"With gamma {name} a run diverged.")
            continue
        norm, loss = apart(norms(on), norms(off)), apart(on.losses(), off.losses())
        words.append(
            f"With gamma {name}, on the relation less off it, in {on.steps:.0f} steps and "
            f"{off.steps:.0f}: the full gradient at the end {shown(norm, sign=True)}, "
            f"{direction(norm)}; test loss {shown(loss, sign=True)}, {direction(loss)}."
        )
    beaten = [row.name for row in found.growing if any(dominates(c, row) for c in found.constant)]
    better = [
        row.name
        for row in found.growing
        if not row.diverged and direction(apart(row.losses(), found.best.losses())) == "lower"
    ]
    words.append(
        f"The constant row with the least validation loss is {found.best.name}; with a test loss "
        f"lower than its: {listed(better)}. Dominated by a constant row: {listed(beaten)}, of "
        f"{len(found.growing)} that grow."
    )
    return " ".join(words)


def draw(ledger: Ledger, path: Path) -> None:
    """A row a cell: full gradient and validation loss over samples and over steps."""
    from experiments.lab.draw import COLOURS, figure, logarithmic

    drawn, axes = figure(rows=len(CELLS), columns=4, width=3.2, height=2.7)
    for row_of_axes, cell in zip(axes, CELLS, strict=True):
        found = measured(ledger, cell)
        lines = [found.best, *found.pairs["1"], *found.pairs["sqrt 2"], *found.others]
        for colour, row in zip(COLOURS, lines, strict=True):
            if row.diverged:
                continue
            points = [r.curve for r in row.results if len(r.curve) == len(row.results[0].curve)]
            curve = [
                [mean([p[at][k] for p in points]).value for k in range(5)]
                for at in range(len(points[0]))
            ]
            for axis, clock, what in zip(row_of_axes, (1, 0, 1, 0), (4, 4, 3, 3), strict=True):
                axis.plot(
                    [p[clock] for p in curve], [p[what] for p in curve],
                    "o-", ms=2, lw=1.2, color=colour, label=row.name,
                )  # fmt: skip
        labels = ("full gradient", "full gradient", "validation loss", "validation loss")
        for axis, clock, what in zip(row_of_axes, ("samples", "steps") * 2, labels, strict=True):
            axis.set(xlabel=clock, ylabel=what, xscale="log" if clock == "steps" else "linear")
            logarithmic(axis)
        row_of_axes[0].set_title(cell.name, fontsize=8)
        row_of_axes[-1].legend(fontsize=5)
    drawn.savefig(path, dpi=110)


PART = Part(title="Growth by the clock, on its relation and off it", find=find, draw=draw)
