"""Compare growth of the batch size by the measured noise scale with fixed schedules and constant
batch sizes.

The optimizer is SGD without momentum. All rows of a table train on equally many samples. Each row
has the best of seven base learning rates, by the mean validation loss of three seeds; five other
seeds are reported. The rows are:

- "batch 16", ...: constant batch sizes, with a constant learning rate or with a cosine.
- "by the clock": the batch size doubles at fixed numbers of samples, with square-root scaling of
  the learning rate. This row and the constant rows are also on [another page](relation.md).
- "by the full gradient": the scheduler of the authors, which measures the norm of the full
  gradient. The authors measure it every 1000 steps; here it is measured once per epoch of the first
  batch size. The samples of each measurement are part of the budget.
- "another seed's batches": a yoked run, which replays the batch sizes of the next seed's run by the
  noise scale, at the same base learning rate and with square-root scaling.
- "by the noise scale": the library's method, with square-root scaling.

Values are means over seeds with 95 % confidence intervals. Differences are paired by seed. A row
dominates another row if it has at most as many steps and a lower mean test loss.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from experiments.adadagrad.setup import Make, Replayed, Row
from experiments.growth import relation
from experiments.growth.setup import (
    CNN,
    DIGITS,
    HEADER,
    Cell,
    Watched,
    apart,
    clocks,
    direction,
    dominates,
    listed,
    losses,
    norms,
    page_text,
    record_of,
    tuned,
)
from experiments.lab import workloads
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Extra
from torch import nn

import largebatch as lb
from largebatch import methods

CELLS: tuple[Cell, ...] = (DIGITS, CNN)

FULL = True
"""If True, the scheduler of the authors is measured on digits."""

BLIND = "another seed's batches"
"""Name of the row that replays the batch sizes of another seed."""

CUT: dict[str, str] = {
    "ResNet-8 on Fashion-MNIST": "the runs would take hours",
}
"""What was not measured -> the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged(Watched):
    """Describe a run whose budget includes the samples that measuring the full gradient takes."""

    def meter(self, model: nn.Module) -> lb.Meter:
        workload, data = workloads.workload(self.workload), workloads.data(self.workload)
        full = lb.FullGradient(data.train, workload.loss)
        return lb.Meter(model, full=full)

    def ends(self, record: lb.MemoryRecord) -> bool:
        last = record.steps[-1].seen
        return last.samples + last.batch_size + _passes(record) >= self.budget.amount

    def extra(self, control: lb.Controller, record: lb.MemoryRecord) -> Extra:
        extra = Watched.extra(self, control, record)
        return replace(extra, notes={"passes": float(_passes(record))})


def _passes(record: lb.MemoryRecord) -> int:
    """Return the number of samples that measuring the full gradient took."""
    return sum(seen.extra_samples for seen, _ in record.steps)


def _full(cell: Cell) -> Make:
    """Return the row of the authors' scheduler, which checks once per epoch of the first batch."""
    epoch = workloads.data(cell.workload).train[0].shape[0] // cell.start
    rule = methods.full_gradient_growth(check=epoch)

    def make(lr: float, seed: int) -> Charged:
        plain = cell.run("by the full gradient", rule, lr=lr, seed=seed)
        return Charged(**{field.name: getattr(plain, field.name) for field in fields(plain)})

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Hold the rows of one cell.

    Args:
        constant: Rows of the constant batch sizes.
        clock: Row whose batch size grows at fixed numbers of samples.
        method: Row whose batch size grows by the noise scale.
        blind: Row that replays the batch sizes of another seed.
        full: Row of the authors' scheduler; empty if it is not measured.
    """

    constant: list[Row]
    clock: Row
    method: Row
    blind: Row
    full: list[Row]


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Make or read all runs of a cell."""
    makes = relation.constants(cell) | {"by the clock": relation.pairs(cell)["sqrt 2"][0]}
    rows = tuned(record_of(ledger, "relation"), cell, makes)
    own = {"by the noise scale": cell.make("by the noise scale", methods.adaptive_growth())}
    if FULL and cell is DIGITS:
        own["by the full gradient"] = _full(cell)
    grown = tuned(ledger, cell, own)
    method = grown["by the noise scale"]
    traces = [result.extra.trace for result in method.results]
    blind = [
        cell.run(
            BLIND,
            lb.chain(Replayed(batches=trace), lb.SqrtScaling()),
            lr=method.lr,
            seed=seed,
        )
        for seed, trace in enumerate(traces[1:] + traces[:1])
    ]
    return Found(
        constant=[rows[name] for name in relation.constants(cell)],
        clock=rows["by the clock"],
        method=method,
        blind=Row(
            name=BLIND, lr=method.lr, at_edge=False, results=ledger.results(blind),
            make=method.make,
        ),
        full=[row for name, row in grown.items() if name == "by the full gradient"],
    )  # fmt: skip


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    every = {cell: measured(ledger, cell) for cell in CELLS}
    findings.text.append(_answer(list(every.values())))
    for cell, found in every.items():
        own = found.method
        findings.text.append(f"## {cell.name}")
        rows = [*found.constant, found.clock, *found.full, found.blind, own]
        findings.table(
            (
                *HEADER,
                "norm of the full gradient at the end",
                "test loss",
                "test accuracy",
                "test loss minus that of growth by the noise scale",
            ),
            [
                [*clocks(r), "" if r.diverged else shown(mean(norms(r))), *losses(r, own)]
                for r in rows
            ],
        )
        findings.text.append(_verdict(found))
        findings.add(f"{cell.name}: steps", own.steps, least=0.2 * own.steps)
        findings.add(f"{cell.name}: test loss", mean(own.losses()), least=0.02)
    findings.method(page_text(__doc__))
    findings.leave_out(CUT)
    return findings


def _answer(every: list[Found]) -> str:
    """Return the first paragraph of the page: the question, and what the tables show."""
    clock = [direction(apart(f.method.losses(), f.clock.losses())) for f in every]
    blind = [direction(apart(f.method.losses(), f.blind.losses())) for f in every]
    beaten = sum(any(dominates(row, f.method) for row in f.constant) for f in every)
    n = len(every)
    return (
        "Is it better to grow the batch size by the measured noise scale than by a fixed schedule? "
        f"Growth by the noise scale is shown to have a lower test loss in {clock.count('lower')} "
        f"of {n} tables, with more steps. A constant batch size dominates it in {beaten} of {n} "
        f"tables. Compared with a replay of another seed's batch sizes, no difference is shown in "
        f"{blind.count('not shown to differ')} of {n} tables."
    )


def _verdict(found: Found) -> str:
    """Return what the table shows of growth by the noise scale, in sentences."""
    own = found.method
    if own.diverged:
        return "Growth by the noise scale diverged."
    beaten = listed([row.name for row in found.constant if dominates(own, row)])
    by = listed([row.name for row in found.constant if dominates(row, own)])
    words = [
        f"- Constant rows that growth by the noise scale dominates: {beaten}.",
        f"- Constant rows that dominate growth by the noise scale: {by}.",
    ]
    for row in (found.clock, found.blind, *found.full):
        if row.diverged:
            words.append(f'- A run of the row "{row.name}" diverged.')
        else:
            difference = apart(own.losses(), row.losses())
            words.append(
                f'- Compared with the row "{row.name}" ({row.steps:.0f} steps), the test loss of '
                f"growth by the noise scale ({own.steps:.0f} steps) is {direction(difference)}: "
                f"{shown(difference, sign=True)}."
            )
    return "\n".join(words)


def draw(ledger: Ledger, path: Path) -> None:
    """Draw test loss over steps, and the batch sizes of each seed over samples, a row per cell."""
    from experiments.lab.draw import COLOURS, figure, logarithmic, logarithmic_x

    drawn, axes = figure(rows=len(CELLS), columns=2, width=4.2)
    for (left, right), cell in zip(axes, CELLS, strict=True):
        found = measured(ledger, cell)
        half = len(found.constant) // 2
        for style, part in (("o-", found.constant[:half]), ("o--", found.constant[half:])):
            rows = [row for row in part if not row.diverged]
            left.plot(
                [row.steps for row in rows], [mean(row.losses()).value for row in rows],
                style, ms=3, color=COLOURS[0],
                label="constant batch size" + (", cosine" if "--" in style else ""),
            )  # fmt: skip
        grown = (found.method, found.clock, found.blind, *found.full)
        for colour, row in zip(COLOURS[1:], grown, strict=False):
            if row.diverged:
                continue
            left.plot(row.steps, mean(row.losses()).value, "s", color=colour, label=row.name)
            for result in row.results if row is not found.blind else []:
                starts, batches = zip(*result.extra.trace, strict=True)
                right.step(
                    [*starts, result.samples], [*batches, batches[-1]],
                    where="post", lw=1, color=colour,
                )  # fmt: skip
        left.set(xlabel="optimizer steps", ylabel="test loss", title=cell.name)
        logarithmic_x(left)
        right.set(xlabel="samples", ylabel="batch size")
        logarithmic(right)
        left.legend(fontsize=6)
    drawn.savefig(path, dpi=110)


PART = Part(title="Growing batch sizes: growth by the noise scale", find=find, draw=draw)
