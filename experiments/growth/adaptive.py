"""Growth when the noise scale asks for it, beside growth by the clock and constant batches.

SGD without momentum, at equal samples; each row at the best of seven rates for it by the validation
loss of three seeds, five others reported. The blind runs repeat, at the method's rate, the batches
of the next seed, with the rate as their root. The constant batches and growth by the clock, on the
relation with the rate as the batch's root, are those of the part on the relation. The authors'
scheduler asks the full gradient once an epoch of the first batch, theirs each 1000 steps; a pass
counts as its samples, and the run trains on what is left.
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
    beside,
    clocks,
    direction,
    dominates,
    listed,
    losses,
    norms,
    said,
    tuned,
)
from experiments.lab import workloads
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Told
from torch import nn

import largebatch as lb
from largebatch import methods

CELLS: tuple[Cell, ...] = (DIGITS, CNN)

FULL = True
"""Whether the authors' scheduler is measured, on digits."""

CUT: dict[str, str] = {
    "ResNet-8 on Fashion-MNIST": "left out for its hours",
}
"""What is not measured -> why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged(Watched):
    """A run whose passes over the data are paid from its samples: it ends when both are used up."""

    def meter(self, model: nn.Module) -> lb.Meter:
        workload, data = workloads.workload(self.workload), workloads.data(self.workload)
        full = lb.FullGradient(data.train, workload.loss)
        return lb.Meter(model, full=full)

    def ends(self, record: lb.MemoryRecord) -> bool:
        last = record.steps[-1].seen
        return last.samples + last.batch_size + _passes(record) >= self.budget.amount

    def told(self, control: lb.Controller, record: lb.MemoryRecord) -> Told:
        told = Watched.told(self, control, record)
        return replace(told, notes={"passes": float(_passes(record))})


def _passes(record: lb.MemoryRecord) -> int:
    """Samples spent on measuring."""
    return sum(seen.extra_samples for seen, _ in record.steps)


def _full(cell: Cell) -> Make:
    """The authors' thresholds and factors; a check an epoch of the first batch."""
    epoch = workloads.data(cell.workload).train[0].shape[0] // cell.start
    rule = methods.full_gradient_growth(check=epoch)

    def make(lr: float, seed: int) -> Charged:
        plain = cell.run("by the full gradient", rule, lr=lr, seed=seed)
        return Charged(**{field.name: getattr(plain, field.name) for field in fields(plain)})

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The rows of a cell.

    Args:
        constant: at a constant rate and with a cosine.
        clock: grows on the relation.
        method: the library's.
        blind: it with another seed's batches.
        full: the authors', where it is measured.
    """

    constant: list[Row]
    clock: Row
    method: Row
    blind: Row
    full: list[Row]


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Makes, or reads, all runs of a cell."""
    makes = relation.constants(cell) | {"by the clock": relation.pairs(cell)["sqrt 2"][0]}
    rows = tuned(beside(ledger, "relation"), cell, makes)
    own = {"by the noise scale": cell.make("by the noise scale", methods.adaptive_growth())}
    if FULL and cell is DIGITS:
        own["by the full gradient"] = _full(cell)
    grown = tuned(ledger, cell, own)
    method = grown["by the noise scale"]
    traces = [result.told.trace for result in method.results]
    blind = [
        cell.run(
            "another seed's batches",
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
            name="blind", lr=method.lr, at_edge=False, results=ledger.results(blind),
            make=method.make,
        ),
        full=[row for name, row in grown.items() if name == "by the full gradient"],
    )  # fmt: skip


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(said(__doc__))
    findings.text.append(
        "Means over seeds with their 95 % intervals; the last column is the test loss less that of "
        "growth by the noise scale, paired by seed. A row dominates another where it has no more "
        "steps and a lower mean test loss."
    )
    for cell in CELLS:
        found = measured(ledger, cell)
        own = found.method
        findings.text.append(f"## {cell.name}")
        rows = [*found.constant, found.clock, *found.full, found.blind, own]
        findings.table(
            (*HEADER, "full gradient", "test loss", "accuracy", "less the method's"),
            [
                [*clocks(r), "" if r.diverged else shown(mean(norms(r))), *losses(r, own)]
                for r in rows
            ],
        )
        findings.text.append(_verdict(found))
        findings.add(f"{cell.name}: steps", own.steps, least=0.2 * own.steps)
        findings.add(f"{cell.name}: test loss", mean(own.losses()), least=0.02)
    findings.leave_out(CUT)
    return findings


def _verdict(found: Found) -> str:
    own = found.method
    if own.diverged:
        return "Growth by the noise scale diverged."
    beaten = listed([row.name for row in found.constant if dominates(own, row)])
    by = listed([row.name for row in found.constant if dominates(row, own)])
    words = [f"Growth by the noise scale dominates {beaten} and is dominated by {by}."]
    for row in (found.clock, found.blind, *found.full):
        if row.diverged:
            words.append(f"Of the row {row.name} a run diverged.")
        else:
            difference = apart(own.losses(), row.losses())
            words.append(
                f"Its test loss less that of the row {row.name}, which takes {row.steps:.0f} steps "
                f"to its {own.steps:.0f}: {shown(difference, sign=True)}, {direction(difference)}."
            )
    return " ".join(words)


def draw(ledger: Ledger, path: Path) -> None:
    """A row a cell: loss over steps; batches over samples, of each seed."""
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
                label="constant batch" + (", cosine" if "--" in style else ""),
            )  # fmt: skip
        grown = (found.method, found.clock, found.blind, *found.full)
        for colour, row in zip(COLOURS[1:], grown, strict=False):
            if row.diverged:
                continue
            left.plot(row.steps, mean(row.losses()).value, "s", color=colour, label=row.name)
            for result in row.results if row is not found.blind else []:
                starts, batches = zip(*result.told.trace, strict=True)
                right.step(
                    [*starts, result.samples], [*batches, batches[-1]],
                    where="post", lw=1, color=colour,
                )  # fmt: skip
        left.set(xlabel="optimizer steps", ylabel="test loss", title=cell.name)
        logarithmic_x(left)
        right.set(xlabel="samples", ylabel="batch")
        logarithmic(right)
        left.legend(fontsize=6)
    drawn.savefig(path, dpi=110)


PART = Part(title="Growth when the noise scale asks for it", find=find, draw=draw)
