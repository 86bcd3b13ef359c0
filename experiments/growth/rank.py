"""Measure whether the planner's forecasts put schedules into the order of their real losses.

Sixteen schedules train on equally many samples with the same base learning rate, which is the best
one for a cosine at the base batch size. The real loss is the mean test loss over five seeds, with a
95 % confidence interval.

The forecast from the record is that of `largebatch plan --record`. This command fits a noisy
quadratic model to one recorded run, which has a cosine schedule and a seed of its own. The forecast
from the noise scale is that of `largebatch plan --noise-scale`. This command uses only the noise
scale of the recorded run and assumes an exponent of the loss curve; two exponents are shown.

The line "Fit to the record" describes the fitted model. In direction i of the model, lambda is the
curvature and e describes the start of the training; both are powers of i. The floor is a constant
part of the loss. The two percentages are the root mean square differences between the model and the
record, for the losses and for the noise scales.

The rank correlations are Spearman's. Their intervals hold 90 % of the correlations for five seeds
that are drawn with replacement from the five. Ten schedules never exceed the base learning rate.
The other six schedules use learning rates that the recorded run did not use.

Two choices of the fit were made with the transformer and the CNN without momentum: the noise of SGD
is set by the variance of the gradient, and learning rates above those of the record are left out.
The CNN with momentum was measured after these choices, so it is a test of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from experiments.adadagrad.setup import REPORTED, Row
from experiments.growth.forecasts import CELLS, Found, measured
from experiments.growth.schedules import schedules
from experiments.growth.setup import Cell, page_text
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.ranks import ranks, spearman

CUT: dict[str, str] = {
    "schedules with base learning rates of their own": "a plan has one base learning rate",
    "budgets larger than that of the recorded run": "the runs would take hours",
    "ResNet-8 on Fashion-MNIST": "the runs would take hours",
}
"""What was not measured -> the reason."""


SLOW = "at most the base rate"
"""Name in `expected.json` of the schedules that never exceed the base learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """Hold Spearman's rank correlation with its 90 % interval over seeds.

    Args:
        value: Correlation with the mean losses over all seeds.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def correlation(forecast: Mapping[str, float], real: Mapping[str, Row]) -> Correlation:
    """Return the rank correlation of forecasts with mean test losses.

    The interval comes from 1000 draws of the seeds with replacement.

    Args:
        forecast: Name of a schedule -> forecast loss.
        real: Name of a schedule -> row of its real runs.
    """
    losses_forecast = [forecast[name] for name in real]
    losses = np.array([row.losses() for row in real.values()])
    drawn = np.random.default_rng(0).integers(REPORTED, size=(1000, REPORTED))
    spread = [spearman(losses_forecast, losses[:, seeds].mean(axis=1)) for seeds in drawn]
    low, high = np.quantile(spread, [0.05, 0.95])
    value = spearman(losses_forecast, losses.mean(axis=1))
    return Correlation(value=value, low=float(low), high=float(high))


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    every = {cell: measured(ledger, cell) for cell in CELLS}
    tables = Findings()
    for cell, found in every.items():
        tables.text.append(f"## {cell.name}, {cell.samples} samples")
        _table(tables, cell, found)
        _correlations(tables, cell, found)
    findings.text.append(_answer(tables))
    findings.text += tables.text
    findings.numbers |= tables.numbers
    findings.method(page_text(__doc__))
    findings.leave_out(CUT)
    return findings


def _correlations(findings: Findings, cell: Cell, found: Found) -> None:
    """Add the rank correlations of one cell."""
    findings.text.append(
        f"All schedules have the base learning rate {found.lr:g}. Fit to the record: {found.fit}."
    )
    slow = {n: row for n, row in found.real.items() if not schedules(cell)[n].faster}
    groups = (
        (slow, SLOW, (f"Rank correlations of the {len(slow)} schedules that never exceed the base "
         "learning rate")),
        (found.real, "all", f"Rank correlations of all {len(found.real)} schedules"),
    )  # fmt: skip
    for rows, which, title in groups:
        words = []
        for source, losses in _sources(found).items():
            if losses:
                one = correlation(losses, rows)
                words.append(f"- forecast from {source}: {one}")
                findings.add(f"{cell.name}: {which}: {source}", one.value, least=0.1)
            else:
                words.append(f"- forecast from {source}: none, because no law could be fitted")
        findings.text.append("\n".join([f"{title}:", "", *words]))


def _answer(tables: Findings) -> str:
    """Return the first paragraph of the page: the question, and what the tables show."""

    def values(which: str, source: str) -> list[float]:
        return [n.value for name, n in tables.numbers.items() if f"{which}: {source}" in name]

    slow, every = values(SLOW, "the record"), values("all", "the record")
    alone = values(SLOW, "the noise scale")
    return (
        "Do the planner's forecasts put schedules into the order of their real losses? For the "
        "schedules that never exceed the base learning rate, forecasts from a record do: their "
        f"rank correlations are {min(slow):.2f} to {max(slow):.2f} in {len(slow)} of {len(CELLS)} "
        "workloads, and in the other no law could be fitted to the record. For all schedules they "
        f"are only {min(every):.2f} to {max(every):.2f}. Forecasts from the noise scale alone have "
        f"rank correlations of {min(alone):.2f} to {max(alone):.2f} for the schedules that never "
        "exceed the base learning rate."
    )


def _sources(found: Found) -> dict[str, dict[str, float]]:
    """Return source of a forecast -> name of a schedule -> forecast loss."""
    alone = {f"the noise scale, exponent {s:g}": losses for s, losses in found.alone.items()}
    return {"the record": found.forecast, **alone}


def _table(findings: Findings, cell: Cell, found: Found) -> None:
    """Add the table of one cell, with the schedules in the order of their real losses."""
    plans, sources = schedules(cell), _sources(found)
    names = sorted(found.real, key=lambda name: mean(found.real[name].losses()).value)
    rows = [
        [
            name,
            "yes" if plans[name].faster else "",
            f"{found.real[name].steps:.0f}",
            _loss(found.real[name]),
            *[_number(losses.get(name)) for losses in sources.values()],
        ]
        for name in names
    ]
    heads = [f"forecast from {source}" for source in sources]
    findings.table(
        ("schedule", "exceeds the base learning rate", "steps", "test loss", *heads), rows
    )


def _loss(row: Row) -> str:
    if row.diverged:
        return f"{sum(r.diverged for r in row.results)} of {len(row.results)} diverged"
    return shown(mean(row.losses()))


def _number(loss: float | None) -> str:
    if loss is None:
        return ""
    if not loss < 1e3:
        return "diverges"
    # If a forecast nearly diverges, it depends on rounding, which differs between CPUs.
    return f"{loss:.3f}" if loss < 100.0 else f"{loss:.3g}"


def draw(ledger: Ledger, path: Path) -> None:
    """Draw the ranks of the real losses over the ranks of the forecasts, a panel per cell."""
    from experiments.lab.draw import COLOURS, figure

    every = [(cell, measured(ledger, cell)) for cell in CELLS]
    every = [(cell, found) for cell, found in every if found.forecast]
    drawn, (axes,) = figure(rows=1, columns=len(every), width=3.8, height=3.4)
    for axis, (cell, found) in zip(axes, every, strict=True):
        slow = {n: row for n, row in found.real.items() if not schedules(cell)[n].faster}
        expected = ranks([found.forecast[name] for name in slow])
        came = ranks([mean(row.losses()).value for row in slow.values()])
        axis.plot([0, len(slow) - 1], [0, len(slow) - 1], lw=0.8, color=COLOURS[0])
        axis.plot(expected, came, "o", ms=4, color=COLOURS[1])
        for name, x, y in zip(slow, expected, came, strict=True):
            left = x > len(slow) / 2
            axis.annotate(
                name, (x, y), fontsize=5, xytext=(-4 if left else 4, -6 if left else 4),
                textcoords="offset points", ha="right" if left else "left",
            )  # fmt: skip
        title = f"{cell.name}: correlation {correlation(found.forecast, slow)}"
        axis.set(xlabel="rank of the forecast", ylabel="rank of the real test loss")
        axis.set_title(title, fontsize=8)
    drawn.savefig(path, dpi=110)


PART = Part(
    title="Forecasts of the planner compared with real runs",
    find=find,
    draw=draw,
)
