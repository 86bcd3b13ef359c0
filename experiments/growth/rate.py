"""Measure whether it helps to grow the learning rate together with the batch size.

The optimizer is SGD without momentum. The batch size doubles from stage to stage, in five stages
with equally many samples. The learning rate stays, or it is multiplied by 1.4 at each new stage, as
the authors of arXiv 2409.08770 do. All other settings of a row are equal.

The first learning rate of a row is a fraction of the best constant learning rate, or twice that
value. The best constant learning rate for these batch sizes was chosen from seven values and is
listed in [this table](relation.md), in the row "gamma 1, equal stages".

Values are means over five seeds with 95 % confidence intervals. Differences are paired by seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.adadagrad.setup import Row
from experiments.growth import relation
from experiments.growth.setup import (
    CNN,
    DIGITS,
    Cell,
    apart,
    at,
    direction,
    norms,
    page_text,
    record_of,
    tuned,
)
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part

from largebatch import methods

CELLS: tuple[Cell, ...] = (DIGITS, CNN)
CUT: dict[str, str] = {
    "SGD with momentum, and AdamW": "the runs would take hours",
    "ResNet-8 on Fashion-MNIST": "the runs would take hours",
}
"""What was not measured -> the reason."""

FRACTIONS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""First learning rates of the rows, divided by the best constant learning rate."""

GAMMA = 1.4
"""Factor on the learning rate from stage to stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Hold the two rows with the same first learning rate.

    Args:
        fraction: First learning rate divided by the best constant learning rate.
        stays: Row whose learning rate stays.
        grows: Row whose learning rate grows.
    """

    fraction: float
    stays: Row
    grows: Row

    @property
    def diverged(self) -> bool:
        return self.stays.diverged or self.grows.diverged


def measured(ledger: Ledger, cell: Cell) -> list[Pair]:
    """Make or read all runs of a cell."""
    stays = relation.pairs(cell)["1"][1]
    best = tuned(record_of(ledger, "relation"), cell, {"gamma 1, off": stays})["gamma 1, off"].lr
    growing = methods.growth(gamma=GAMMA, lengths=relation.EQUAL)
    grows = cell.make(f"gamma {GAMMA}, off", growing)
    return [
        Pair(
            fraction=fraction,
            stays=at(ledger, fraction * best, "stays", stays),
            grows=at(ledger, fraction * best, "grows", grows),
        )
        for fraction in FRACTIONS
    ]


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    every = {cell: measured(ledger, cell) for cell in CELLS}
    findings.text.append(_answer([pair for pairs in every.values() for pair in pairs]))
    for cell, pairs in every.items():
        findings.text.append(f"## {cell.name}")
        findings.table(
            ("fraction of the best learning rate", "first learning rate", "steps", "samples",
             "test loss, learning rate stays", "test loss, learning rate grows",
             "difference in test loss (grows minus stays)",
             "norm of the full gradient, learning rate stays",
             "norm of the full gradient, learning rate grows"),
            [_row(pair) for pair in pairs],
        )  # fmt: skip
        findings.text.append(_verdict(pairs))
        for pair in pairs:
            if not pair.diverged:
                name = f"{cell.name}: {pair.fraction:g}: grows less stays"
                difference = apart(pair.grows.losses(), pair.stays.losses())
                findings.add(name, difference, least=0.02)
    findings.method(page_text(__doc__))
    findings.leave_out(CUT)
    return findings


def _answer(pairs: list[Pair]) -> str:
    """Return the first paragraph of the page: the question, and what the tables show."""
    shown_by = [
        direction(apart(pair.grows.losses(), pair.stays.losses()))
        for pair in pairs
        if not pair.diverged
    ]
    return (
        "Does it help to grow the learning rate together with the batch size? A growing learning "
        f"rate is shown to lower the test loss in {shown_by.count('lower')} and to raise it in "
        f"{shown_by.count('higher')} of {len(pairs)} comparisons; in {len(pairs) - len(shown_by)} "
        "comparison a run with a growing learning rate diverged."
    )


def _row(pair: Pair) -> list[str]:
    samples = mean([float(result.samples) for result in pair.stays.results]).value
    head = [f"{pair.fraction:g}", f"{pair.stays.lr:.4g}", f"{pair.stays.steps:.0f}",
            f"{samples:.0f}"]  # fmt: skip
    both = (pair.stays, pair.grows)
    found = ["diverged" if r.diverged else shown(mean(r.losses())) for r in both]
    norm = ["" if r.diverged else shown(mean(norms(r))) for r in both]
    if pair.diverged:
        return [*head, *found, "", *norm]
    return [*head, *found, shown(apart(both[1].losses(), both[0].losses()), sign=True), *norm]


def _verdict(pairs: list[Pair]) -> str:
    """Return what the table shows of each first learning rate, in sentences."""
    best = next(pair for pair in pairs if pair.fraction == 1.0)
    words = []
    for pair in pairs:
        if pair.diverged:
            words.append(f"- At {pair.fraction:g} times the best learning rate, a run diverged.")
            continue
        difference = apart(pair.grows.losses(), pair.stays.losses())
        words.append(
            f"- At {pair.fraction:g} times the best learning rate, the test loss with a growing "
            f"learning rate is {direction(difference)}"
        )
        lost = apart(pair.stays.losses(), best.stays.losses())
        helps = direction(difference) == "lower"
        if helps and pair.fraction < 1.0 and lost.low is not None and lost.low > 0.0:
            made_up = -difference.value / lost.value
            words[-1] += (
                f": growth recovers {made_up:.0%} of the loss that the too small learning rate "
                "causes"
            )
        words[-1] += "."
    return "\n".join(words)


def draw(ledger: Ledger, path: Path) -> None:
    """Draw the test loss over the fraction of the best learning rate, a panel per cell."""
    from experiments.lab.draw import COLOURS, figure, logarithmic, logarithmic_x

    drawn, axes = figure(rows=1, columns=len(CELLS))
    for axis, cell in zip(axes[0], CELLS, strict=True):
        pairs = measured(ledger, cell)
        for colour, label in zip(COLOURS, ("stays", "grows"), strict=False):
            rows = [(p.fraction, getattr(p, label)) for p in pairs]
            points = [(x, mean(row.losses())) for x, row in rows if not row.diverged]
            axis.errorbar(
                [x for x, _ in points], [m.value for _, m in points],
                yerr=[(m.high or m.value) - m.value for _, m in points],
                fmt="o-", ms=3, capsize=2, color=colour, label=f"the learning rate {label}",
            )  # fmt: skip
        axis.set(
            xlabel="first learning rate / best learning rate", ylabel="test loss", title=cell.name
        )
        logarithmic(axis)
        logarithmic_x(axis)
        axis.legend(fontsize=7)
    drawn.savefig(path, dpi=110)


PART = Part(title="Growing batch sizes: a learning rate that grows, too", find=find, draw=draw)
