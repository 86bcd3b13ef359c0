"""Whether the planner's forecasts order real runs as they came out.

Sixteen schedules at equal samples and one base rate, the best one for a cosine at the base batch;
five seeds. Real is the mean test loss. The forecast is that of `largebatch plan --record`: a noisy
quadratic fitted to one run, with the cosine, of another seed. Beside it stands what
`largebatch plan --noise-scale` knows, the noise scale of that run alone, for two exponents of the
loss. Rank correlations are Spearman's; their intervals hold nine of
ten orders that five seeds drawn from the five give. Ten schedules never go above the base rate; of
the others the record has seen no rate.

The transformer and the CNN without momentum were there when the fit was made: that the variance of
the gradient sets the noise of SGD, and that rates above the record's are left out, was chosen on
them. The CNN with momentum was measured after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from experiments.adadagrad.setup import REPORTED, Row
from experiments.growth.forecasts import CELLS, Found, measured
from experiments.growth.schedules import schedules
from experiments.growth.setup import Cell, said
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.ranks import ranks, spearman

CUT: dict[str, str] = {
    "schedules each at a rate of its own": "a plan has one base rate",
    "budgets beyond the recorded one": "left out for their hours",
    "ResNet-8 on Fashion-MNIST": "left out for its hours",
}
"""What is not measured -> why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """Spearman's, with the interval that the seeds leave."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def correlation(forecast: Mapping[str, float], real: Mapping[str, Row]) -> Correlation:
    """Of the forecasts with the mean test losses over all seeds, and over seeds drawn anew."""
    told = [forecast[name] for name in real]
    losses = np.array([row.losses() for row in real.values()])
    drawn = np.random.default_rng(0).integers(REPORTED, size=(1000, REPORTED))
    spread = [spearman(told, losses[:, seeds].mean(axis=1)) for seeds in drawn]
    low, high = np.quantile(spread, [0.05, 0.95])
    return Correlation(value=spearman(told, losses.mean(axis=1)), low=float(low), high=float(high))


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(said(__doc__))
    for cell in CELLS:
        found = measured(ledger, cell)
        findings.text.append(f"## {cell.name}, {cell.samples} samples")
        _table(findings, cell, found)
        findings.text.append(f"The base rate is {found.lr:g}. The record: {found.fit}.")
        slow = {n: row for n, row in found.real.items() if not schedules(cell)[n].faster}
        for rows, which in ((slow, "at most the base rate"), (found.real, "all")):
            words = []
            for source, losses in _sources(found).items():
                if losses:
                    told = correlation(losses, rows)
                    words.append(f"from {source} {told}")
                    findings.add(f"{cell.name}: {which}: {source}", told.value, least=0.1)
                else:
                    words.append(f"from {source} none, since its law was not found")
            findings.text.append(
                f"Rank correlation, {which} ({len(rows)} schedules): {'; '.join(words)}."
            )
    findings.leave_out(CUT)
    return findings


def _sources(found: Found) -> dict[str, dict[str, float]]:
    """Name -> its forecasts."""
    alone = {f"the noise scale, exponent {s:g}": losses for s, losses in found.alone.items()}
    return {"the record": found.forecast, **alone}


def _table(findings: Findings, cell: Cell, found: Found) -> None:
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
    findings.table(("schedule", "above the base rate", "steps", "test loss", *heads), rows)


def _loss(row: Row) -> str:
    if row.diverged:
        return f"{sum(r.diverged for r in row.results)} of {len(row.results)} diverged"
    return shown(mean(row.losses()))


def _number(loss: float | None) -> str:
    if loss is None:
        return ""
    if not loss < 1e3:
        return "diverges"
    # A fit near divergence multiplies the last bits of numpy's sums, which differ between CPUs.
    return f"{loss:.3f}" if loss < 100.0 else f"{loss:.3g}"


def draw(ledger: Ledger, path: Path) -> None:
    """A panel a cell: real order over the order that the record forecasts."""
    from experiments.lab.draw import COLOURS, figure

    every = [(cell, measured(ledger, cell)) for cell in CELLS]
    every = [(cell, found) for cell, found in every if found.forecast]
    drawn, (axes,) = figure(rows=1, columns=len(every), width=3.8, height=3.4)
    for axis, (cell, found) in zip(axes, every, strict=True):
        slow = {n: row for n, row in found.real.items() if not schedules(cell)[n].faster}
        told = ranks([found.forecast[name] for name in slow])
        came = ranks([mean(row.losses()).value for row in slow.values()])
        axis.plot([0, len(slow) - 1], [0, len(slow) - 1], lw=0.8, color=COLOURS[0])
        axis.plot(told, came, "o", ms=4, color=COLOURS[1])
        for name, x, y in zip(slow, told, came, strict=True):
            left = x > len(slow) / 2
            axis.annotate(
                name, (x, y), fontsize=5, xytext=(-4 if left else 4, -6 if left else 4),
                textcoords="offset points", ha="right" if left else "left",
            )  # fmt: skip
        title = f"{cell.name}: {correlation(found.forecast, slow)}"
        axis.set(xlabel="forecast rank", ylabel="rank of the test loss", title=title)
    drawn.savefig(path, dpi=110)


PART = Part(title="Do the planner's forecasts order real runs?", find=find, draw=draw)
