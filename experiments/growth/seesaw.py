"""Compare Seesaw, which replaces half of a decay by growth of the batch size, with the cosine.

The optimizer is AdamW, with a warm-up over a twentieth of the run. All rows of a table train on
equally many samples, except the last two rows, which train on four times as many. The base learning
rate of the cosine is the best of seven, by the mean validation loss of three seeds; five other
seeds are reported. The other rows are shown at the base learning rate of the cosine, as in the
paper, and at the best of seven for the row itself ("own learning rate"). The rows are:

- "cosine": the cosine decay at the first batch size, which the other rows are compared with.
- "Seesaw, bounded": the batch size is at most the measured noise scale (kappa = 1).
- "Seesaw, not bounded": the batch size has no limit but the size of the data set.
- "root of the cosine": the learning rate decays as the square root of the cosine, and the batch
  size stays.
- "batch n, cosine": a constant batch size that takes as many steps as bounded Seesaw.

The column "smallest possible number of steps" assumes that the batch size follows
first batch size / cosine factor without delay, is at most the noise scale that the run recorded
last, and never shrinks.

Values are means over seeds with 95 % confidence intervals. Differences are paired by seed. "Held"
means that the whole interval of the difference in test loss is within 1 % of the cosine's test
loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.adadagrad.setup import REPORTED, Row
from experiments.growth.seesaw_runs import CELLS, DECAY, LONGER, Found, limit, measured
from experiments.growth.setup import HEADER, Cell, apart, clocks, direction, losses, page_text
from experiments.lab.findings import Findings, mean
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Result

CUT: dict[str, str] = {
    "models with 150M parameters and more, as in the paper": "they need larger machines",
    "other constant batch sizes": "only the one with as many steps as Seesaw was measured",
}
"""What was not measured -> the reason."""

MARGIN = 0.01
"""Largest relative difference in test loss that counts as equal."""


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    every = {cell: measured(ledger, cell) for cell in CELLS}
    findings.text.append(_answer(list(every.values())))
    for cell, found in every.items():
        findings.text.append(f"## {cell.name}")
        rows = [found.cosine, *[r for pair in found.paired.values() for r in pair], found.large]
        metric = ["accuracy"] * ("accuracy" in found.cosine.results[0].test)
        more = replace(cell, samples=LONGER * cell.samples)
        findings.table(
            (*HEADER, "smallest possible number of steps", "test loss",
             *(f"test {name}" for name in metric), "test loss minus the cosine's"),
            [[*_clocks(row), _limit(row, cell), *losses(row, found.cosine)] for row in rows]
            + [
                [*_clocks(row), _limit(row, more), *losses(row, found.longer[0])]
                for row in found.longer
            ],
        )  # fmt: skip
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
    findings.method(page_text(__doc__))
    findings.leave_out(CUT)
    return findings


def _answer(every: Sequence[Found]) -> str:
    """Return the first paragraph of the page: the question, and what the tables show."""
    short = [(found.paired["Seesaw, bounded"][0], found.cosine) for found in every]
    long = [(found.longer[1], found.longer[0]) for found in every]
    saved = [1.0 - row.steps / cosine.steps for row, cosine in (*short, *long)]
    held = [sum(_holds(row, cosine) for row, cosine in pairs) for pairs in (short, long)]
    return (
        "Does Seesaw reach the test loss of the cosine with fewer steps? At the base learning rate "
        f"of the cosine, bounded Seesaw takes {min(saved):.1%} to {max(saved):.1%} fewer steps. A "
        f"test loss within {MARGIN:.0%} of the cosine's is shown in {held[0]} of {len(short)} "
        f"workloads, and in {held[1]} of {len(long)} with {LONGER} times the samples."
    )


def _clocks(row: Row) -> list[str]:
    """Return the texts of the first columns, with a plain name of the row."""
    name, *others = clocks(row)
    return [name.replace("own rate", "own learning rate"), *others]


def _holds(row: Row, cosine: Row) -> bool:
    """Return whether the interval of the difference in test loss is within the margin."""
    if row.diverged:
        return False
    margin, difference = MARGIN * mean(cosine.losses()).value, apart(row.losses(), cosine.losses())
    assert difference.low is not None
    assert difference.high is not None
    return -margin < difference.low and difference.high < margin


def _limits(results: Sequence[Result], cell: Cell) -> list[float]:
    return [limit(result, cell) for result in results]


def _limit(row: Row, cell: Cell) -> str:
    if not row.name.startswith("Seesaw, bounded"):
        return ""
    return f"{mean(_limits(row.results, cell)).value:.0f}"


def _verdict(found: Found, cell: Cell) -> str:
    """Return what the table shows of each row, as a list."""
    words = []
    for name, pair in found.paired.items():
        for row in pair:
            own = row.name.endswith("own rate")
            rate = "its own learning rate" if own else "the learning rate of the cosine"
            words.append(f"- {name}, at {rate}: {_outcome(row, found.cosine)}.")
    words.append(f"- {_clocks(found.large)[0]}: {_outcome(found.large, found.cosine)}.")
    cosine, seesaw = found.longer
    words.append(
        f"- Seesaw, bounded, with {LONGER} times the samples, at the learning rate of the cosine: "
        f"{_outcome(seesaw, cosine)}."
    )
    bounded = found.paired["Seesaw, bounded"][0]
    if not bounded.diverged:
        least = mean(_limits(bounded.results, cell)).value
        words.append(
            "- At the learning rate of the cosine, the bound allows to save "
            f"{1.0 - least / found.cosine.steps:.0%} of the steps, and Seesaw saves "
            f"{1.0 - bounded.steps / found.cosine.steps:.0%}."
        )
    return "\n".join(words)


def _outcome(row: Row, cosine: Row) -> str:
    """Return the steps that a row saves, and its test loss compared with the cosine's."""
    if row.diverged:
        return "a run diverged"
    difference = apart(row.losses(), cosine.losses())
    relative = difference.value / mean(cosine.losses()).value
    equal = "held" if _holds(row, cosine) else "not shown"
    saved = 1.0 - row.steps / cosine.steps
    return (
        f"{saved:.0%} fewer steps than the cosine; the test loss is {direction(difference)} "
        f"({relative:+.1%}); equality within {MARGIN:.0%}: {equal}"
    )


def draw(ledger: Ledger, path: Path) -> None:
    """Draw batch size and noise scale over samples, and the loss of each row over steps."""
    from experiments.lab.draw import COLOURS, figure, logarithmic_x

    drawn, axes = figure(rows=len(CELLS), columns=2, width=4.2)
    for (left, right), cell in zip(axes, CELLS, strict=True):
        found = measured(ledger, cell)
        for seed, result in enumerate(found.paired["Seesaw, bounded"][0].results[:REPORTED]):
            samples, batches, noise = zip(*result.extra.trace, strict=True)
            for colour, values, label in ((1, batches, "batch size"), (2, noise, "noise scale")):
                left.plot(
                    samples, values, lw=1, color=COLOURS[colour], label=label if not seed else None
                )
        grid = [part / 200 for part in range(190)]
        left.plot(
            [cell.samples * x for x in grid], [cell.start / DECAY(x) for x in grid], "--", lw=1,
            color=COLOURS[0], label="first batch size / cosine",
        )  # fmt: skip
        left.set(yscale="log", xlabel="samples", ylabel="samples", title=cell.name)
        left.legend(fontsize=7)
        rows = [found.cosine, *[r for pair in found.paired.values() for r in pair], found.large]
        for colour, row in zip(COLOURS, rows, strict=True):
            if not row.diverged:
                loss = mean(row.losses())
                half = (loss.high or loss.value) - loss.value
                right.errorbar(
                    row.steps, loss.value, yerr=half, fmt="o", ms=4, capsize=2, color=colour,
                    label=_clocks(row)[0],
                )  # fmt: skip
        right.set(xlabel="optimizer steps", ylabel="test loss")
        logarithmic_x(right)
        right.legend(fontsize=6)
    drawn.savefig(path, dpi=110)


PART = Part(title="Seesaw compared with the cosine", find=find, draw=draw)
