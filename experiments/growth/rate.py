"""A rate that grows with the batch, from the best rate and from rates that are too small.

SGD without momentum; the batch doubles from each of five equally long stages to the next, so that
rows differ by the rate alone. The rates are fractions of the one that is best for these batches at
a constant rate, of seven, as the part on the relation found it. From there the rate stays, or is
multiplied by 1.4 at each stage, as the authors of arXiv 2409.08770 do. Five seeds.
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
    beside,
    direction,
    norms,
    said,
    tuned,
)
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part

from largebatch import methods

CELLS: tuple[Cell, ...] = (DIGITS, CNN)
CUT: dict[str, str] = {
    "optimizers with momentum or AdamW": "left out for their hours",
    "ResNet-8 on Fashion-MNIST": "left out for its hours",
}
"""What is not measured -> why."""

FRACTIONS = (0.125, 0.25, 0.5, 1.0, 2.0)
GAMMA = 1.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both rows at one rate.

    Args:
        fraction: of the best rate.
        stays, grows: the rows.
    """

    fraction: float
    stays: Row
    grows: Row

    @property
    def diverged(self) -> bool:
        return self.stays.diverged or self.grows.diverged


def measured(ledger: Ledger, cell: Cell) -> list[Pair]:
    """Makes, or reads, all runs of a cell."""
    stays = relation.pairs(cell)["1"][1]
    best = tuned(beside(ledger, "relation"), cell, {"gamma 1, off": stays})["gamma 1, off"].lr
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
    findings.text.append(said(__doc__))
    for cell in CELLS:
        pairs = measured(ledger, cell)
        findings.text.append(f"## {cell.name}")
        findings.table(
            ("of the best rate", "rate", "steps", "samples", "test loss, rate stays",
             "rate grows", "grows less stays", "full gradient, stays", "grows"),
            [_row(pair) for pair in pairs],
        )  # fmt: skip
        findings.text.append(_verdict(pairs))
        for pair in pairs:
            if not pair.diverged:
                name = f"{cell.name}: {pair.fraction:g}: grows less stays"
                difference = apart(pair.grows.losses(), pair.stays.losses())
                findings.add(name, difference, least=0.02)
    findings.leave_out(CUT)
    return findings


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
    best = next(pair for pair in pairs if pair.fraction == 1.0)
    words = []
    for pair in pairs:
        if pair.diverged:
            words.append(f"At {pair.fraction:g} of the best rate a run diverged.")
            continue
        difference = apart(pair.grows.losses(), pair.stays.losses())
        words.append(
            f"At {pair.fraction:g} of the best rate the loss with growth is {direction(difference)}"
        )
        lost = apart(pair.stays.losses(), best.stays.losses())
        helps = direction(difference) == "lower"
        if helps and pair.fraction < 1.0 and lost.low is not None and lost.low > 0.0:
            made_up = -difference.value / lost.value
            words[-1] += f": it makes up {made_up:.0%} of what the rate lost"
        words[-1] += "."
    return " ".join(words)


def draw(ledger: Ledger, path: Path) -> None:
    """A panel a cell: test loss over the fraction."""
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
                fmt="o-", ms=3, capsize=2, color=colour, label=f"the rate {label}",
            )  # fmt: skip
        axis.set(xlabel="of the best rate", ylabel="test loss", title=cell.name)
        logarithmic(axis)
        logarithmic_x(axis)
        axis.legend(fontsize=7)
    drawn.savefig(path, dpi=110)


PART = Part(title="Does growing the rate help?", find=find, draw=draw)
