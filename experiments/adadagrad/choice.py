"""Choose the default settings of the methods whose batch size grows by a norm test.

Each row trains on equally many samples. A growing row is a chain of three rules: a norm test, a
limit of the growth, and a rule for the learning rate. The column "test" names the estimate of the
squared gradient norm that the test uses: "plug-in" is the squared norm of the batch gradient,
averaged over steps, and "unbiased" is an unbiased estimate of the squared norm of the true
gradient. The column "growth" has the largest growth in one test and the number of steps between
tests.

Each row is shown at two base learning rates: the best one for the constant first batch size, and
the best one of seven for the row itself. Both are chosen by the mean validation loss of three
seeds, which is also the loss that the table shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from experiments.adadagrad.setup import TUNING, Cell, Make
from experiments.lab.findings import Findings, mean
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Result

import largebatch as lb

FOLLOW: Mapping[str, tuple[lb.Rule, ...]] = MappingProxyType(
    {
        "stays": (),
        "square root": (lb.SqrtScaling(),),
        "linear": (lb.LinearScaling(),),
        "AdaScale": (lb.AdaScale(),),
    }
)
"""Name -> rules that change the learning rate when the batch size grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Describe a chain of rules that grows the batch size.

    Args:
        denominator, eta: Settings of the norm test.
        follow: Name in `FOLLOW` of the rule for the learning rate.
        growth: Largest factor by which one test can multiply the batch size.
        every: Number of optimizer steps between two tests.
        first: Number of steps at the start of the run that are all tested; None for `every`.
    """

    denominator: Literal["plug-in", "unbiased"] = "unbiased"
    eta: float = 1.0
    follow: str = "square root"
    growth: float = 2.0
    every: int = 10
    first: int | None = None

    @property
    def name(self) -> str:
        """Return the name of the choice in the record."""
        test = f"{self.denominator} {self.eta:g}"
        first = "" if self.first is None else f", the first {self.first}"
        return f"{test}, {self.follow}, x{self.growth:g} every {self.every}{first}"

    def make(self, cell: Cell) -> Make:
        statistic = cell.statistic
        test: lb.Rule = lb.NormTest(eta=self.eta, denominator=self.denominator, statistic=statistic)
        if self.denominator == "plug-in":
            test = lb.Averaged(test, statistic=statistic)
        first = self.every if self.first is None else self.first
        shrink = 1.0 if self.denominator == "plug-in" else 0.5
        rules = (
            test if self.every == 1 else lb.Every(test, steps=self.every, first=first),
            lb.LimitGrowth(factor=self.growth, shrink=shrink),
            *FOLLOW[self.follow],
        )
        return lambda lr, seed: cell.run(self.name, rules, lr=lr, seed=seed)


DIGITS = Cell(
    workload="digits", optimizer="sgd", start=16, samples=21_500, doublings=5, schedule="peaked"
)
TEXT = Cell(
    workload="stdlib-narrow", optimizer="adamw", start=16, samples=16_000, doublings=4,
    schedule="peaked", micro_batch=64,
)  # fmt: skip
CUT: dict[str, str] = {
    "the plug-in test, other limits of growth and other intervals on text": "a run on text takes "
    "ten times as long as a run on digits"
}
"""What was not measured -> the reason."""

CHOICES: Mapping[Cell, tuple[Choice, ...]] = MappingProxyType(
    {
        DIGITS: (
            *(Choice(denominator="plug-in", eta=eta, follow=follow)
              for eta in (1.0, 0.5, 0.25) for follow in FOLLOW),
            *(Choice(eta=eta, follow=follow)
              for eta in (1.4, 1.0, 0.7, 0.5) for follow in FOLLOW),
            *(Choice(growth=growth) for growth in (1.2, 4.0, 1e9)),
            *(Choice(every=every) for every in (1, 50)),
            *(Choice(first=first) for first in (0, 4)),
        ),
        TEXT: (
            *(Choice(follow=follow) for follow in FOLLOW),
            *(Choice(eta=eta) for eta in (1.4, 0.5)),
        ),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Hold the results of one row of the table.

    Args:
        name: Texts of the first three columns.
        by_rate: Base learning rate -> results of the seeds.
    """

    name: tuple[str, ...]
    by_rate: dict[float, list[Result]]

    def loss(self, lr: float) -> float:
        """Return the mean validation loss at a base learning rate; infinite if a run diverged."""
        results = self.by_rate[lr]
        if any(result.diverged for result in results):
            return float("inf")
        return mean([result.validation["loss"] for result in results]).value

    def steps(self, lr: float) -> float:
        return mean([float(result.steps) for result in self.by_rate[lr]]).value

    @property
    def best(self) -> float:
        """Return the base learning rate with the lowest mean validation loss."""
        return min(self.by_rate, key=self.loss)


def tried(ledger: Ledger, cell: Cell) -> list[Tried]:
    """Return the rows of the constant batch sizes, then the rows of the choices."""

    def constant(batch: int) -> Make:
        return lambda lr, seed: cell.run(f"batch {batch}", (), lr=lr, seed=seed, batch=batch)

    batches = [cell.start * 2**k for k in range(cell.doublings + 1)]
    makes: list[tuple[tuple[str, ...], Make]] = [
        ((f"batch {batch}", "", ""), constant(batch)) for batch in batches
    ]
    for choice in CHOICES[cell]:
        test = f"{choice.denominator}, eta {choice.eta:g}"
        growth = "any" if choice.growth > 100 else f"x{choice.growth:g}"
        first = "" if choice.first is None else f", first {choice.first or 'none'}"
        name = (test, f"{growth} in {choice.every}{first}", choice.follow)
        makes.append((name, choice.make(cell)))
    runs = {
        (at, lr): [make(lr, seed) for seed in range(TUNING)]
        for at, (_, make) in enumerate(makes)
        for lr in cell.rates
    }
    ledger.results([run for row in runs.values() for run in row])
    return [
        Tried(name=name, by_rate={lr: ledger.results(runs[at, lr]) for lr in cell.rates})
        for at, (name, _) in enumerate(makes)
    ]


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(
        "Which settings should the default of a growing batch size have? Each table shows steps "
        "and validation loss for different norm tests, limits of the growth and rules for the "
        "learning rate; fewer steps at the same loss are better."
    )
    for cell in CHOICES:
        rows = tried(ledger, cell)
        base = rows[0].best
        findings.text.append(f"## {cell.title}, {cell.samples} samples")
        header = ("test", "growth", "learning rate", f"steps at lr {base:g}",
                  f"validation loss at lr {base:g}", "best lr", "steps at the best lr",
                  "validation loss at the best lr")  # fmt: skip
        findings.table(
            header,
            [
                (*row.name, f"{row.steps(base):.0f}", f"{row.loss(base):.3f}", f"{row.best:g}",
                 f"{row.steps(row.best):.0f}", f"{row.loss(row.best):.3f}")
                for row in rows
            ],
        )  # fmt: skip
        for row in rows:
            name = ", ".join(part for part in row.name if part)
            least = 0.05 if row.loss(row.best) < 1.0 else 0.2
            findings.add(f"{cell.workload}: {name}", row.loss(row.best), least=least)
    findings.method(__doc__.split("\n\n", 1)[1])
    findings.leave_out(CUT)
    return findings


def draw(ledger: Ledger, path: Path) -> None:
    """Draw validation loss over steps, at the learning rate of the first batch size and at the
    best one of each row."""
    from experiments.lab.draw import COLOURS, figure

    drawn, axes = figure(rows=len(CHOICES), columns=2, width=4.4, height=3.2)
    for (left, right), cell in zip(axes, CHOICES, strict=True):
        rows = tried(ledger, cell)
        base = rows[0].best
        constant = [row for row in rows if row.name[0].startswith("batch")]
        for axis, at_base in ((left, True), (right, False)):
            axis.plot(
                [row.steps(row.best) for row in constant],
                [row.loss(row.best) for row in constant],
                "o-", color=COLOURS[0], ms=3, label="constant batch sizes, best learning rate",
            )  # fmt: skip
            for colour, follow in zip(COLOURS[1:], FOLLOW, strict=False):
                for marker, test in (("x", "plug-in"), ("o", "unbiased")):
                    points = [
                        (row.steps(lr), row.loss(lr))
                        for row in rows
                        if row.name[2] == follow and row.name[0].startswith(test)
                        for lr in [base if at_base else row.best]
                    ]
                    if points:
                        x, y = zip(*points, strict=True)
                        axis.plot(x, y, marker, color=colour, ms=5, label=f"{test}, {follow}")
            least = min(row.loss(row.best) for row in rows)
            axis.set(
                xscale="log", xlabel="optimizer steps", ylabel="validation loss",
                ylim=(0.8 * least, 2.5 * least),
                title=f"{cell.workload}: "
                + (f"learning rate {base:g}" if at_base else "best learning rate of each row"),
            )  # fmt: skip
            axis.title.set_fontsize(9)
        right.legend(fontsize=6)
    drawn.savefig(path, dpi=110)


PART = Part(title="How the default was chosen", find=find, draw=draw, spots=True)
