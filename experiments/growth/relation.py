"""Compare growing batch sizes whose stages have the lengths of the theory with growing batch sizes
in equal stages and with constant batch sizes.

The optimizer is SGD without momentum, because the theory holds for it. All rows of a table train on
equally many samples. Each row has the best of seven base learning rates, by the mean validation
loss of three seeds; five other seeds are reported. A growing batch size starts with the smallest
constant batch size and doubles four times.

In a row "stages of the theory", each stage has (2 / gamma)^2 times the samples of the stage before,
where gamma is the factor on the learning rate from stage to stage. In a row "equal stages", all
stages have equally many samples. The two rows of a pair differ in their mean batch size and
therefore in their number of steps, and the table shows both.

The full gradient is the gradient of the mean loss over the training set, or over at most 10,000
evenly spaced samples of it. The samples that are used to compute the full gradient are not part of
the budget. The smallest norm is the smallest of eight norms along the run (four on the CNN), and
the last of these norms is measured at the end of the run.

Values are means over seeds with 95 % confidence intervals. Differences are paired by seed. The best
constant row is the one with the lowest mean validation loss. A row dominates another row if it has
at most as many steps and a lower mean test loss.
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
    page_text,
    tuned,
)
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part

import largebatch as lb
from largebatch import methods

CELLS: tuple[Cell, ...] = (DIGITS, CNN)
CUT: dict[str, str] = {
    "momentum": "the bound of the theory holds for SGD without momentum",
    "ResNet-8 on Fashion-MNIST": "the runs would take hours",
    "gamma 1.4 on the CNN": "gamma sqrt 2 is almost the same",
}
"""What was not measured -> the reason."""

EQUAL = (1.0,) * 5
"""Relative lengths of five equal stages."""

COSINE = lb.Schedule(factor=lb.Cosine())
GAMMAS: Mapping[str, float | None] = {"1": 1.0, "1.4": 1.4, "sqrt 2": None}
"""Name -> factor on the learning rate from stage to stage; None for square-root scaling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Hold the rows of one cell.

    Args:
        constant: Rows of the constant batch sizes, first with a constant learning rate and then
            with a cosine, each from the smallest to the largest batch size.
        pairs: Name of gamma -> (row with the stages of the theory, row with equal stages).
        others: Rows whose batch size grows in other ways.
        best: Constant row with the lowest mean validation loss.
    """

    constant: list[Row]
    pairs: dict[str, tuple[Row, Row]]
    others: list[Row]
    best: Row

    @property
    def growing(self) -> list[Row]:
        return [row for pair in self.pairs.values() for row in pair] + self.others


def constants(cell: Cell) -> dict[str, Make]:
    """Return the rows with a constant learning rate, then the rows with a cosine."""
    return {
        f"batch {batch}{named}": cell.make(f"batch {batch}{named}", rule, batch=batch)
        for named, rule in (("", lb.chain()), (", cosine", COSINE))
        for batch in cell.batches
    }


def pairs(cell: Cell) -> dict[str, tuple[Make, Make]]:
    """Return name of gamma -> (row with the stages of the theory, row with equal stages)."""
    return {
        name: (
            cell.make(f"gamma {name}, on", methods.growth(gamma=gamma)),
            cell.make(f"gamma {name}, off", methods.growth(gamma=gamma, lengths=EQUAL)),
        )
        for name, gamma in GAMMAS.items()
        if name != "1.4" or cell is DIGITS
    }


def others(cell: Cell) -> dict[str, Make]:
    """Return the rows that grow in other ways to about the same last batch size."""
    decaying = lb.chain(methods.growth(gamma=1.0, lengths=EQUAL), COSINE)
    rules: dict[str, lb.Rule] = {
        "linear growth": methods.linear_growth(step=2.0, stages=8),
        "growth, cosine": decaying,
        "growth, warm-up and cosine": methods.warmup_growth(stages=5),
    }
    return {name: cell.make(name, rule) for name, rule in rules.items()}


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Make or read all runs of a cell."""
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
    every = {cell: measured(ledger, cell) for cell in CELLS}
    findings.text.append(_answer(list(every.values())))
    for cell, found in every.items():
        findings.text.append(f"## {cell.name}, {cell.samples} samples")
        findings.table(
            (
                *HEADER,
                "norm of the full gradient at the end",
                "smallest norm of the full gradient",
                "test loss",
                "test accuracy",
                "test loss minus the best constant row's",
            ),
            [_row(row, found.best) for row in (*found.constant, *found.growing)],
        )
        findings.text.append(_verdict(found))
        for row in (found.best, *found.growing):
            if not row.diverged:
                name = "best constant" if row is found.best else row.name
                findings.add(f"{cell.name}: {name}: test loss", mean(row.losses()), least=0.02)
                norm = mean(norms(row))
                findings.add(f"{cell.name}: {name}: gradient", norm, least=0.2 * norm.value)
    findings.method(page_text(__doc__))
    findings.leave_out(CUT)
    return findings


def _answer(every: list[Found]) -> str:
    """Return the first paragraph of the page: the question, and what the tables show."""
    both = [
        (apart(norms(on), norms(off)), apart(on.losses(), off.losses()))
        for found in every
        for on, off in found.pairs.values()
        if not (on.diverged or off.diverged)
    ]
    norm, loss = ([direction(pair[at]) for pair in both] for at in (0, 1))
    better = sum(len(_better(found)) for found in every)
    growing = sum(len(found.growing) for found in every)
    return (
        "Does a growing batch size train better if its stages have the lengths that the theory "
        "prescribes? Compared with equal stages, the full gradient is shown to be smaller in "
        f"{norm.count('lower')} and larger in {norm.count('higher')} of {len(both)} pairs, and the "
        f"test loss is shown to be lower in {loss.count('lower')} and higher in "
        f"{loss.count('higher')}. With the stages of the theory, the runs take fewer steps than "
        f"with equal stages. Of {growing} rows with a growing batch size, {better} are shown to "
        "have a lower test loss than the best constant row."
    )


def _better(found: Found) -> list[str]:
    """Return the growing rows that are shown to have a lower test loss than the best constant."""
    return [
        label(row.name)
        for row in found.growing
        if not row.diverged and direction(apart(row.losses(), found.best.losses())) == "lower"
    ]


def label(name: str) -> str:
    """Return the name of a row in the tables.

    >>> label("gamma 1, off")
    'gamma 1, equal stages'
    """
    for end, words in ((", on", ", stages of the theory"), (", off", ", equal stages")):
        if name.endswith(end):
            return name.removesuffix(end) + words
    return name


def _row(row: Row, best: Row) -> list[str]:
    head = [label(row.name), *clocks(row)[1:]]
    if row.diverged:
        return [*head, "", "", *losses(row, best)]
    norm = [shown(mean(norms(row, least=least))) for least in (False, True)]
    return [*head, *norm, *losses(row, best)]


def _verdict(found: Found) -> str:
    """Return what the table shows of each pair, and of growing compared with constant rows."""
    words = []
    for name, (on, off) in found.pairs.items():
        if on.diverged or off.diverged:
            words.append(f"- With gamma {name}, a run diverged.")
            continue
        norm, loss = apart(norms(on), norms(off)), apart(on.losses(), off.losses())
        words.append(
            f"- With gamma {name}, the stages of the theory take {on.steps:.0f} steps and equal "
            f"stages take {off.steps:.0f} steps. With the stages of the theory, the norm of the "
            f"full gradient at the end is {direction(norm)} ({shown(norm, sign=True)}), and the "
            f"test loss is {direction(loss)} ({shown(loss, sign=True)})."
        )
    beaten = [
        label(row.name) for row in found.growing if any(dominates(c, row) for c in found.constant)
    ]
    words += [
        f"- Best constant row: {found.best.name}.",
        (
            "- Growing rows with a test loss shown to be lower than the best constant row's: "
            f"{listed(_better(found))}."
        ),
        (
            f"- Growing rows that a constant row dominates, {len(beaten)} of {len(found.growing)}: "
            f"{'; '.join(beaten) or 'none'}."
        ),
    ]
    return "\n".join(words)


def draw(ledger: Ledger, path: Path) -> None:
    """Draw full gradient and validation loss over samples and over steps, a row per cell."""
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
                    "o-", ms=2, lw=1.2, color=colour, label=label(row.name),
                )  # fmt: skip
        labels = ("norm of the full gradient",) * 2 + ("validation loss",) * 2
        for axis, unit, title in zip(row_of_axes, ("samples", "steps") * 2, labels, strict=True):
            axis.set(xlabel=unit, ylabel=title, xscale="log" if unit == "steps" else "linear")
            logarithmic(axis)
        row_of_axes[0].set_title(cell.name, fontsize=8)
        row_of_axes[-1].legend(fontsize=5)
    drawn.savefig(path, dpi=110)


PART = Part(title="Growing batch sizes: stage lengths of the theory", find=find, draw=draw)
