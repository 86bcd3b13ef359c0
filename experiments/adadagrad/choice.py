"""How the default was chosen: steps against loss over test, level, bounds and what the rate does.

Each row is a chain of a norm test, a limit of growth and a rule of the rate, on the same samples.
It is shown at the rate that is best for the constant first batch, and at the best of seven rates of
its own; both by the validation loss of three seeds, which is what the table has. Plug-in is the
batch's own squared norm, averaged; unbiased that of the true gradient.
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
"""How the rate follows the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A chain that grows the batch.

    Args:
        denominator, eta: of the norm test.
        follow: a name of FOLLOW.
        growth: most growth in one test.
        every: optimizer steps from one test to the next.
        first: steps at the start that are all tested; None for as many as `every`.
    """

    denominator: Literal["plug-in", "unbiased"] = "unbiased"
    eta: float = 1.0
    follow: str = "square root"
    growth: float = 2.0
    every: int = 10
    first: int | None = None

    @property
    def name(self) -> str:
        """In the record."""
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
    "text: the plug-in test, limits of growth, intervals": "a run takes ten times one on digits"
}
"""What is not measured -> why."""

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
    """One row.

    Args:
        name: in tables.
        by_rate: results of the tuning seeds by rate.
    """

    name: tuple[str, ...]
    by_rate: dict[float, list[Result]]

    def loss(self, lr: float) -> float:
        """Mean validation loss; infinite where a run diverged."""
        results = self.by_rate[lr]
        if any(result.diverged for result in results):
            return float("inf")
        return mean([result.validation["loss"] for result in results]).value

    def steps(self, lr: float) -> float:
        return mean([float(result.steps) for result in self.by_rate[lr]]).value

    @property
    def best(self) -> float:
        """The rate of the least loss."""
        return min(self.by_rate, key=self.loss)


def tried(ledger: Ledger, cell: Cell) -> list[Tried]:
    """The constant batches, then the choices."""

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
    findings.text.append(__doc__.split("\n\n", 1)[1].strip())
    for cell in CHOICES:
        rows = tried(ledger, cell)
        base = rows[0].best
        findings.text.append(f"## {cell.name}, {cell.samples} samples")
        header = ("test", "growth, steps", "rate", f"steps at {base:g}", f"loss at {base:g}",
                  "best rate", "steps", "loss")  # fmt: skip
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
    findings.leave_out(CUT)
    return findings


def draw(ledger: Ledger, path: Path) -> None:
    """Steps and loss of each row, at the first batch's rate and at its own."""
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
                "o-", color=COLOURS[0], ms=3, label="constant, at its best rate",
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
                title=f"{cell.workload}: " + (f"rate {base:g}" if at_base else "best rate of each"),
            )  # fmt: skip
            axis.title.set_fontsize(9)
        right.legend(fontsize=6)
    drawn.savefig(path, dpi=110)


PART = Part(title="How the default was chosen", find=find, draw=draw, spots=True)
