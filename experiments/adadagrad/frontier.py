"""Batches that grow by themselves, beside every constant batch.

Each row trains on the same samples, at the best of seven rates for it by the validation loss of
three seeds; five seeds are reported. The constant batches are all powers of two from the first
batch on. The plain rule is the paper's: each step is tested, the bare gradient's norm as it is,
the batch never shrinks and the rate does not follow. AdaBatch doubles it at a quarter, a half and
three quarters of the samples, from where its steps are as many as the method's. The blind runs
repeat, at the method's rate, the batches of the next seed. The methods' defaults were chosen on
digits with SGD (`choice.py`): the cells of digits show what they can do, the others how they do on
data that they were not chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.adadagrad.setup import Cell, Make, Replayed, Row, tuned
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Result

import largebatch as lb
from largebatch import methods

CELLS: tuple[Cell, ...] = (
    *(Cell(workload="digits", optimizer=optimizer, start=16, samples=21_500, doublings=5,
           schedule=schedule)
      for optimizer, schedule in (("sgd", "constant"), ("sgd", "peaked"), ("adagrad", "constant"),
                                  ("adagrad-norm", "constant"), ("adamw", "peaked"))),
    Cell(workload="fashion-cnn", optimizer="sgd", start=16, samples=55_000, doublings=6,
         schedule="peaked"),
    Cell(workload="stdlib-narrow", optimizer="adamw", start=16, samples=16_000, doublings=4,
         schedule="peaked", micro_batch=64),
)  # fmt: skip
"""What is measured."""

CUT: dict[str, str] = {
    "logistic regression on Fashion-MNIST over 50 epochs": "left out for its hour",
    "ResNet-8": "left out for its six hours",
    "the CNN with Adagrad, AdaGrad-Norm and AdamW, and over more epochs": "left out for hours",
    "the transformer with SGD and Adagrad": "left out for hours",
}
"""What is not measured -> why."""

METHODS = {
    "sgd": ("AdaSGD", methods.adasgd),
    "adagrad": ("AdAdaGrad", methods.adadagrad),
    "adagrad-norm": ("AdAdaGrad-Norm", methods.adadagrad_norm),
    "adamw": ("AdAdam", methods.adadam),
}
"""Optimizer -> the library's method for it."""

PLAIN = (0.5, 0.25)
"""eta of the paper's plain rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The rows of a cell.

    Args:
        cell: which.
        constant: from the least batch to the largest.
        method: the library's.
        others: rows that grow in other ways.
        blind: the method with another seed's batches.
    """

    cell: Cell
    constant: list[Row]
    method: Row
    others: list[Row]
    blind: list[Result]


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Makes, or reads, all runs of a cell."""
    name, method = METHODS[cell.optimizer]

    def constant(batch: int) -> Make:
        return lambda lr, seed: cell.run(f"batch {batch}", (), lr=lr, seed=seed, batch=batch)

    def growing(name: str, rule: lb.Rule) -> Make:
        return lambda lr, seed: cell.run(name, (rule,), lr=lr, seed=seed)

    def adabatch(batch: int) -> Make:
        rule = lb.rules.Milestones()
        return lambda lr, seed: cell.run("AdaBatch", (rule,), lr=lr, seed=seed, batch=batch)

    batches = [cell.start * 2**k for k in range(cell.doublings + 1)]
    rows = {f"batch {batch}": constant(batch) for batch in batches}
    rows[name] = growing(name, method())
    for eta in PLAIN:
        plain = lb.chain(lb.NormTest(eta=eta), lb.LimitGrowth(factor=1e9, shrink=1.0))
        rows[f"plain, eta {eta:g}"] = growing(f"plain {eta:g}", plain)
    found = tuned(ledger, cell.rates, rows)
    own = found[name]
    milestones = _as_many_steps(own, cell)
    found |= tuned(ledger, cell.rates, {f"AdaBatch from {milestones}": adabatch(milestones)})
    traces = [result.told.trace for result in own.results]
    blind = ledger.results(
        [
            cell.run("another seed's batches", (Replayed(batches=trace),), lr=own.lr, seed=seed)
            for seed, trace in enumerate(traces[1:] + traces[:1])
            if trace
        ]
    )
    constants = [found.pop(f"batch {batch}") for batch in batches]
    method_row = found.pop(name)
    return Found(
        cell=cell,
        constant=constants,
        method=method_row,
        others=list(found.values()),
        blind=blind,
    )


def _as_many_steps(own: Row, cell: Cell) -> int:
    """The first batch with which AdaBatch takes about as many steps: a quarter of the samples each
    at one, two, four and eight times it."""
    return max(round(own.batch * (1 + 1 / 2 + 1 / 4 + 1 / 8) / 4), 2)


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(__doc__.split("\n\n", 1)[1].strip())
    findings.text.append(
        "Means over seeds; the difference in test loss to the method is paired by seed, with its "
        "95 % interval. A row dominates another where it has fewer steps and a lower test loss."
    )
    unbeaten = 0
    for cell in CELLS:
        found = measured(ledger, cell)
        unbeaten += _cell(findings, found)
    findings.text.append(
        f"In {unbeaten} of {len(CELLS)} cells no constant batch has both fewer steps and a lower "
        "mean test loss than the method."
    )
    findings.add("cells in which no constant batch dominates", float(unbeaten), least=1.5)
    findings.leave_out(CUT)
    return findings


def _cell(findings: Findings, found: Found) -> bool:
    cell, own = found.cell, found.method
    findings.text.append(f"## {cell.name}, {cell.samples} samples")
    accuracy = "accuracy" in own.results[0].test
    header = [
        "",
        "rate",
        "steps",
        "mean batch",
        "test loss",
        *["accuracy"] * accuracy,
        "less the method's",
    ]
    rows = [_row(row, own, accuracy) for row in (*found.constant, own, *found.others)]
    blind = Row(name="blind", lr=own.lr, at_edge=False, results=found.blind, make=own.make)
    if len(found.blind) == len(own.results):
        rows.append(_row(blind, own, accuracy))
    findings.table(header, rows)
    findings.text.append(_verdict(found))
    findings.add(f"{cell.name}: steps", own.steps, least=0.2 * own.steps)
    findings.add(f"{cell.name}: test loss", mean(own.losses()), least=0.02)
    beaten = [row.name for row in found.constant if _dominates(row, own)]
    return not beaten


def _row(row: Row, own: Row, accuracy: bool) -> list[str]:
    if row.diverged:
        lost = sum(result.diverged for result in row.results)
        return [
            row.name,
            f"{row.lr:g}",
            "",
            "",
            f"{lost} of {len(row.results)} diverged",
            *[""] * accuracy,
            "",
        ]
    apart = [a - b for a, b in zip(row.losses(), own.losses(), strict=True)]
    cells = [
        row.name,
        f"{row.lr:g}" + (" (edge)" if row.at_edge else ""),
        f"{row.steps:.0f}",
        f"{row.batch:.0f}",
        shown(mean(row.losses())),
    ]
    if accuracy:
        cells.append(f"{mean([r.test['accuracy'] for r in row.results]).value:.1%}")
    return [*cells, "" if row is own else shown(mean(apart), sign=True)]


def _dominates(row: Row, other: Row) -> bool:
    lower = mean(row.losses()).value < mean(other.losses()).value
    return lower and row.steps <= other.steps


def _verdict(found: Found) -> str:
    own = found.method
    beaten = [row.name for row in found.constant if _dominates(own, row)]
    by = [row.name for row in found.constant if _dominates(row, own)]
    plain = [row for row in found.others if row.name.startswith("plain")]
    lost = [p.name for p in plain if any(_dominates(row, p) for row in found.constant)]
    words = [
        f"{own.name} dominates {_listed(beaten)} and is dominated by {_listed(by)}.",
        f"Of the plain rule, {_listed(lost)} is dominated by a constant batch.",
    ]
    return " ".join(words)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def draw(ledger: Ledger, path: Path) -> None:
    """A row a cell: the frontier; batch and validation loss over samples, of one seed."""
    from experiments.lab.draw import COLOURS, figure, logarithmic

    drawn, axes = figure(rows=len(CELLS), columns=3, width=3.8, height=2.6)
    for (left, middle, right), cell in zip(axes, CELLS, strict=True):
        found = measured(ledger, cell)
        shown_rows = [row for row in found.constant if not row.diverged]
        left.plot(
            [row.steps for row in shown_rows],
            [mean(row.losses()).value for row in shown_rows],
            "o-", color=COLOURS[0], ms=3, label="constant batches",
        )  # fmt: skip
        for row in shown_rows:
            point = (row.steps, mean(row.losses()).value)
            left.annotate(
                row.name.split()[1], point, fontsize=6, xytext=(2, 3), textcoords="offset points"
            )
        for colour, row in zip(COLOURS[1:], (found.method, *found.others), strict=False):
            if row.diverged:
                continue
            marker = "*" if row is found.method else "s"
            size = 9 if row is found.method else 4
            left.plot(
                row.steps, mean(row.losses()).value, marker, color=colour, ms=size, label=row.name
            )
            one = row.results[-1]
            ends = [*[p[0] for p in one.told.trace[1:]], one.samples]
            for (start, batch), end in zip(one.told.trace, ends, strict=True):
                middle.plot([start, end], [batch, batch], color=colour, lw=1.5)
            right.plot([p[1] for p in one.curve], [p[3] for p in one.curve], color=colour)
        for row in (shown_rows[0], shown_rows[-1]):
            one = row.results[-1]
            right.plot(
                [p[1] for p in one.curve], [p[3] for p in one.curve], color=COLOURS[0], lw=0.8
            )
        left.set(xscale="log", xlabel="optimizer steps", ylabel="test loss", title=cell.name)
        left.title.set_fontsize(8)
        middle.set(yscale="log", xlabel="samples", ylabel="batch")
        right.set(xlabel="samples", ylabel="validation loss")
        logarithmic(right)
        left.legend(fontsize=6)
    drawn.savefig(path, dpi=110)


PART = Part(
    title="Batches that grow, beside all constant ones",
    find=find,
    draw=draw,
    spots=True,
)
