"""Compare batch sizes that grow by a norm test with all constant batch sizes.

All rows of a table train on equally many samples. Each row has the best of seven base learning
rates, by the mean validation loss of three seeds; five seeds are reported. A learning rate at the
edge of the grid is marked. The rows are:

- "batch 16", "batch 32", ...: constant batch sizes, all powers of two from the first batch size on.
- AdaSGD, AdAdaGrad, AdAdaGrad-Norm or AdAdam: the method of the library for the optimizer of the
  table, with its default settings.
- "paper's rule": the norm test of the paper in each step. It uses the squared norm of the raw
  batch gradient, never makes the batch smaller and keeps the learning rate.
- "AdaBatch from n": the batch size starts at n and doubles after a quarter, a half and three
  quarters of the samples. The value of n makes the number of steps close to that of the method.
- "another seed's batches": a yoked run, which replays the batch sizes of the method's run with the
  next seed at the same base learning rate.

The default settings of the methods were chosen on digits with SGD (`choice.py`), so the tables of
the other workloads show data on which nothing was chosen.

Steps, batch sizes and losses are means over seeds. Differences in test loss are paired by seed and
have 95 % confidence intervals. A row dominates another row if it has at most as many steps and a
lower mean test loss.
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
from largebatch.analysis.student import Mean

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
"""Cells of the page: one table each."""

CUT: dict[str, str] = {
    "logistic regression on Fashion-MNIST over 50 epochs": "the runs would take an hour",
    "ResNet-8": "the runs would take six hours",
    "the CNN with Adagrad, AdaGrad-Norm and AdamW, and over more epochs": "the runs would take "
    "hours",
    "the transformer with SGD and Adagrad": "the runs would take hours",
}
"""What was not measured -> the reason."""

METHODS = {
    "sgd": ("AdaSGD", methods.adasgd),
    "adagrad": ("AdAdaGrad", methods.adadagrad),
    "adagrad-norm": ("AdAdaGrad-Norm", methods.adadagrad_norm),
    "adamw": ("AdAdam", methods.adadam),
}
"""Optimizer -> name and constructor of the library's method for it."""

PLAIN = (0.5, 0.25)
"""Values of eta with which the paper's rule is tried."""

BLIND = "another seed's batches"
"""Name of the row that replays the batch sizes of another seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Hold the rows of one cell.

    Args:
        cell: The cell.
        constant: Rows of the constant batch sizes, from the smallest to the largest.
        method: Row of the library's method.
        others: Rows whose batch size grows in other ways.
        blind: Results of the yoked runs, which replay the batch sizes of another seed.
    """

    cell: Cell
    constant: list[Row]
    method: Row
    others: list[Row]
    blind: list[Result]


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Make or read all runs of a cell."""
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
        rows[f"paper's rule, eta {eta:g}"] = growing(f"plain {eta:g}", plain)
    found = tuned(ledger, cell.rates, rows)
    own = found[name]
    milestones = _as_many_steps(own, cell)
    found |= tuned(ledger, cell.rates, {f"AdaBatch from {milestones}": adabatch(milestones)})
    traces = [result.extra.trace for result in own.results]
    blind = ledger.results(
        [
            cell.run(BLIND, (Replayed(batches=trace),), lr=own.lr, seed=seed)
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
    """Return the first batch size with which AdaBatch takes about as many steps as a row.

    AdaBatch spends a quarter of the samples at one, two, four and eight times its first batch size.
    """
    return max(round(own.batch * (1 + 1 / 2 + 1 / 4 + 1 / 8) / 4), 2)


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    cells = [measured(ledger, cell) for cell in CELLS]
    unbeaten = sum(not any(_dominates(row, f.method) for row in f.constant) for f in cells)
    yoked = [_apart(f.blind, f.method) for f in cells if len(f.blind) == len(f.method.results)]
    adapting = sum(one.low is not None and one.low > 0.0 for one in yoked)
    findings.text.append(
        "Is a batch size that grows by a norm test better than every constant batch size? In "
        f"{unbeaten} of {len(cells)} tables, no constant batch size has both a lower mean test "
        "loss than the method and at most as many steps. A replay of another seed's batch sizes is "
        f"shown to have a higher test loss than the method in {adapting} of {len(yoked)} tables, "
        "so in the other tables it is not shown that adapting to the noise of the own run matters."
    )
    for found in cells:
        _cell(findings, found)
    findings.method(__doc__.split("\n\n", 1)[1])
    findings.add("cells in which no constant batch dominates", float(unbeaten), least=1.5)
    findings.leave_out(CUT)
    return findings


def _apart(results: Sequence[Result], own: Row) -> Mean:
    """Return the mean difference in test loss between some results and a row, paired by seed."""
    losses = [float("inf") if r.diverged else r.test["loss"] for r in results]
    return mean([a - b for a, b in zip(losses, own.losses(), strict=True)])


def _cell(findings: Findings, found: Found) -> None:
    """Add the table of a cell and the sentences below it."""
    cell, own = found.cell, found.method
    findings.text.append(f"## {cell.title}, {cell.samples} samples")
    accuracy = "accuracy" in own.results[0].test
    header = [
        "row",
        "base learning rate",
        "steps",
        "mean batch size",
        "test loss",
        *["test accuracy"] * accuracy,
        f"test loss minus {own.name}'s",
    ]
    rows = [_row(row, own, accuracy) for row in (*found.constant, own, *found.others)]
    blind = Row(name=BLIND, lr=own.lr, at_edge=False, results=found.blind, make=own.make)
    if len(found.blind) == len(own.results):
        rows.append(_row(blind, own, accuracy))
    findings.table(header, rows)
    findings.text.append(_verdict(found))
    findings.add(f"{cell.name}: steps", own.steps, least=0.2 * own.steps)
    findings.add(f"{cell.name}: test loss", mean(own.losses()), least=0.02)


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
    """Return whether a row has at most as many steps and a lower mean test loss than another."""
    lower = mean(row.losses()).value < mean(other.losses()).value
    return lower and row.steps <= other.steps


def _verdict(found: Found) -> str:
    """Return which rows dominate which others, in sentences."""
    own = found.method
    beaten = [row.name for row in found.constant if _dominates(own, row)]
    by = [row.name for row in found.constant if _dominates(row, own)]
    plain = [row for row in found.others if row.name.startswith("paper's rule")]
    lost = [p.name for p in plain if any(_dominates(row, p) for row in found.constant)]
    return (
        f"Constant batch sizes that {own.name} dominates: {_listed(beaten)}. Constant batch sizes "
        f"that dominate {own.name}: {_listed(by)}. Rows of the paper's rule that a constant batch "
        f"size dominates: {_listed(lost)}."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def draw(ledger: Ledger, path: Path) -> None:
    """Draw test loss over steps, and batch size and validation loss of one seed over samples.

    Each cell has one row of three panels.
    """
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
            ends = [*[p[0] for p in one.extra.trace[1:]], one.samples]
            for (start, batch), end in zip(one.extra.trace, ends, strict=True):
                middle.plot([start, end], [batch, batch], color=colour, lw=1.5)
            right.plot([p[1] for p in one.curve], [p[3] for p in one.curve], color=colour)
        for row in (shown_rows[0], shown_rows[-1]):
            one = row.results[-1]
            right.plot(
                [p[1] for p in one.curve], [p[3] for p in one.curve], color=COLOURS[0], lw=0.8
            )
        left.set(xscale="log", xlabel="optimizer steps", ylabel="test loss", title=cell.title)
        left.title.set_fontsize(8)
        middle.set(yscale="log", xlabel="samples", ylabel="batch size")
        right.set(xlabel="samples", ylabel="validation loss")
        logarithmic(right)
        left.legend(fontsize=6)
    drawn.savefig(path, dpi=110)


PART = Part(
    title="Batch sizes that grow by a norm test, compared with constant ones",
    find=find,
    draw=draw,
    spots=True,
)
