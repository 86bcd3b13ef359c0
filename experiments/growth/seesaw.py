"""Seesaw: a decay that is half traded for growth of the batch, beside the cosine it is made of.

AdamW at equal samples, with a warm-up over a twentieth. The rate of the cosine is the best of seven
by the validation loss of three seeds, and the other rows are shown at that rate, as in the paper,
and at the best of seven of their own; five other seeds are reported. A second comparison, at the
cosine's rate, has four times the samples. Seesaw is bounded by the
measured noise scale (kappa = 1) or by nothing but the data. Controls: the decay as its root
without growth, and a constant batch of as many steps as Seesaw at the cosine's rate, with a cosine.

The limit of the steps is what a batch of base / factor would take that follows without delay, held
at the noise scale that the run recorded last, and never shrinks: what that bound leaves to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.adadagrad.setup import REPORTED, Row
from experiments.growth.setup import HEADER, Cell, apart, clocks, direction, losses, said
from experiments.growth.traded import CELLS, DECAY, LONGER, Found, limit, measured
from experiments.lab.findings import Findings, mean
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Result

CUT: dict[str, str] = {
    "models of 150M and more, as in the paper": "no machine for them",
    "other constant batches": "the one of as many steps stands for them",
}
"""What is not measured -> why."""

MARGIN = 0.01
"""Relative loss within which it counts as equal."""


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(said(__doc__))
    findings.text.append(
        "Means over seeds with their 95 % intervals; the last column is the test loss less that of "
        "the cosine, paired by seed."
    )
    for cell in CELLS:
        found = measured(ledger, cell)
        findings.text.append(f"## {cell.name}")
        rows = [found.cosine, *[r for pair in found.paired.values() for r in pair], found.large]
        metric = ["accuracy"] * ("accuracy" in found.cosine.results[0].test)
        more = replace(cell, samples=LONGER * cell.samples)
        findings.table(
            (*HEADER, "steps, limit", "test loss", *metric, "less the cosine's"),
            [[*clocks(row), _limit(row, cell), *losses(row, found.cosine)] for row in rows]
            + [
                [*clocks(row), _limit(row, more), *losses(row, found.longer[0])]
                for row in found.longer
            ],
        )
        findings.text.append(_verdict(found, cell))
        apart_longer = apart(found.longer[1].losses(), found.longer[0].losses())
        findings.add(f"{cell.name}: longer: less the cosine's", apart_longer, least=0.02)
        for row in rows:
            if not row.diverged:
                name = "batch of as many steps" if row is found.large else row.name
                shared = row in [pair[0] for pair in found.paired.values()]
                name = f"{name}, the cosine's rate" if shared else name
                findings.add(f"{cell.name}: {name}: test loss", mean(row.losses()), least=0.02)
                findings.add(f"{cell.name}: {name}: steps", row.steps, least=0.2 * row.steps)
    findings.leave_out(CUT)
    return findings


def _limits(results: Sequence[Result], cell: Cell) -> list[float]:
    return [limit(result, cell) for result in results]


def _limit(row: Row, cell: Cell) -> str:
    if not row.name.startswith("Seesaw, bounded"):
        return ""
    return f"{mean(_limits(row.results, cell)).value:.0f}"


def _verdict(found: Found, cell: Cell) -> str:
    words = []
    whole = mean(found.cosine.losses()).value
    for name, pair in found.paired.items():
        for row in pair:
            rate = "at its own rate" if row.name.endswith("own rate") else "at the cosine's rate"
            words.append(f"{name}, {rate}: {_outcome(row, found.cosine, whole)}.")
    words.append(f"{found.large.name}: {_outcome(found.large, found.cosine, whole)}.")
    cosine, seesaw = found.longer
    words.append(
        f"With {LONGER} times the samples, at the same rate: "
        f"{_outcome(seesaw, cosine, mean(cosine.losses()).value)}."
    )
    own = found.paired["Seesaw, bounded"][0]
    if not own.diverged:
        least = mean(_limits(own.results, cell)).value
        words.append(
            f"The bound leaves {1.0 - least / found.cosine.steps:.0%} of the steps to save at the "
            f"cosine's rate; Seesaw saves {1.0 - own.steps / found.cosine.steps:.0%}."
        )
    return " ".join(words)


def _outcome(row: Row, cosine: Row, whole: float) -> str:
    if row.diverged:
        return "diverged"
    difference = apart(row.losses(), cosine.losses())
    assert difference.low is not None
    assert difference.high is not None
    inside = -MARGIN * whole < difference.low and difference.high < MARGIN * whole
    equal = "held" if inside else "not shown"
    saved = 1.0 - row.steps / cosine.steps
    return (
        f"{saved:.0%} fewer steps, loss {difference.value / whole:+.1%}, {direction(difference)}; "
        f"within {MARGIN:.0%}: {equal}"
    )


def draw(ledger: Ledger, path: Path) -> None:
    """A row a cell: batch and noise scale over samples, and loss over steps of every row."""
    from experiments.lab.draw import COLOURS, figure, logarithmic_x

    drawn, axes = figure(rows=len(CELLS), columns=2, width=4.2)
    for (left, right), cell in zip(axes, CELLS, strict=True):
        found = measured(ledger, cell)
        for seed, result in enumerate(found.paired["Seesaw, bounded"][0].results[:REPORTED]):
            samples, batches, noise = zip(*result.told.trace, strict=True)
            for colour, values, label in ((1, batches, "batch"), (2, noise, "noise scale")):
                left.plot(
                    samples, values, lw=1, color=COLOURS[colour], label=label if not seed else None
                )
        grid = [part / 200 for part in range(190)]
        left.plot(
            [cell.samples * x for x in grid], [cell.start / DECAY(x) for x in grid], "--", lw=1,
            color=COLOURS[0], label="base / factor",
        )  # fmt: skip
        left.set(yscale="log", xlabel="samples", ylabel="samples a step", title=cell.name)
        left.legend(fontsize=7)
        rows = [found.cosine, *[r for pair in found.paired.values() for r in pair], found.large]
        for colour, row in zip(COLOURS, rows, strict=True):
            if not row.diverged:
                loss = mean(row.losses())
                half = (loss.high or loss.value) - loss.value
                right.errorbar(
                    row.steps, loss.value, yerr=half, fmt="o", ms=4, capsize=2, color=colour,
                    label=row.name,
                )  # fmt: skip
        right.set(xlabel="optimizer steps", ylabel="test loss")
        logarithmic_x(right)
        right.legend(fontsize=6)
    drawn.savefig(path, dpi=110)


PART = Part(title="Seesaw beside the cosine", find=find, draw=draw)
