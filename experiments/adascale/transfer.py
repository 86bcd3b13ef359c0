"""Learning-rate transfer: does the base rate that is best at scale 1 stay best at larger batches?

A panel a method, a curve a scale, seven base rates. All methods take AdaScale's optimizer steps at
the same rate, scale and seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.adascale.setup import (
    ADAM,
    at_scale_one,
    final_loss,
    rates,
    scaled,
    steps_of,
    stretched,
)
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part

from largebatch import methods

CELLS: dict[str, tuple[tuple[int, ...], int]] = {
    "digits": ((8, 32), 5),
    "fashion-logistic": ((8, 32), 3),
    "fashion-cnn": ((8,), 3),
    "fashion-cnn-plain": ((8,), 3),
    "stdlib-narrow-sgd": ((8,), 3),
    "stdlib-narrow": ((8,), 3),
}
"""Workload -> (scales above 1, seeds)."""

CUT: dict[str, str] = {
    "scale 32 of the CNN and the transformers": "left out for its two hours of two cores",
    "fashion-resnet8": "left out for its hour and a half of two cores",
    "the transformers of 0.5M parameters": "four times as long as the narrow ones",
}
"""What is not measured -> why."""

WIDE = 1.1
"""Rates within this factor of a curve's least loss are counted as its width."""

Curve = list[list[float]]
"""Validation loss [rates][seeds]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A workload under a method: its curve at each scale."""

    workload: str
    method: str
    rates: list[float]
    curves: dict[int, Curve]


def panels(ledger: Ledger, workload: str) -> list[Panel]:
    """Linear scaling, the square root and AdaScale; no linear scaling of Adam."""
    scales, seeds = CELLS[workload]
    grid = rates(workload)
    base = [[at_scale_one(workload, seed, lr=lr) for seed in range(seeds)] for lr in grid]
    own = {
        scale: [[scaled(workload, scale, seed, lr=lr) for seed in range(seeds)] for lr in grid]
        for scale in scales
    }
    ledger.results([run for table in (base, *own.values()) for row in table for run in row])
    fixed = {"linear": methods.linear(), "sqrt": methods.sqrt()}
    if workload in ADAM:
        del fixed["linear"]
    plus: dict[str, dict[int, list[list[Any]]]] = {name: {} for name in fixed}
    for scale, table in own.items():
        columns = [steps_of(ledger.results([row[seed] for row in table])) for seed in range(seeds)]
        for name, rule in fixed.items():
            plus[name][scale] = [
                [
                    stretched(run, name, rule, steps=steps)
                    for run, steps in zip(row, [column[at] for column in columns], strict=True)
                    if steps is not None
                ]
                for at, row in enumerate(table)
            ]
    ledger.results([r for by in plus.values() for t in by.values() for row in t for r in row])

    def losses(table: list[list[Any]]) -> Curve:
        return [[final_loss(result) for result in ledger.results(row)] for row in table]

    named = {**{f"{name}+": tables for name, tables in plus.items()}, "AdaScale": own}
    return [
        Panel(
            workload=workload,
            method=method,
            rates=grid,
            curves={1: losses(base), **{scale: losses(table) for scale, table in tables.items()}},
        )
        for method, tables in named.items()
    ]


def middle(row: list[float]) -> float:
    """The mean over seeds; infinite if one diverged."""
    return mean(row).value if row and all(map(math.isfinite, row)) else math.inf


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(__doc__.split("\n\n", 1)[1].strip())
    findings.text.append(
        "Moved: by how many doublings the best of the seven rates differs from that of scale 1 "
        "(at the end of the grid it may be more). Lost: validation loss at scale 1's best rate "
        "less the least loss of the curve, paired by seed, with its 95 % interval: what not "
        f"tuning again costs. Width: rates whose mean loss is at most {WIDE:g} times the least. "
        "Rates are chosen on the validation split."
    )
    header = ("workload", "method", "scale", "best rate", "moved", "lost", "least loss", "width")
    rows = []
    for workload in CELLS:
        for panel in panels(ledger, workload):
            at_one = [middle(row) for row in panel.curves[1]]
            tuned = at_one.index(min(at_one))
            for scale, curve in panel.curves.items():
                if scale == 1 and panel.method != "AdaScale":
                    continue
                means = [middle(row) for row in curve]
                best = means.index(min(means))
                there = curve[tuned]
                lost = (
                    mean([a - b for a, b in zip(there, curve[best], strict=True)])
                    if math.isfinite(means[tuned])
                    else None
                )
                width = sum(value <= WIDE * min(means) for value in means)
                moved = best - tuned
                edge = " (end of the grid)" if best in (0, len(means) - 1) else ""
                rows.append(
                    (
                        workload,
                        "" if scale == 1 else panel.method,
                        str(scale),
                        f"{panel.rates[best]:.3g}",
                        "" if scale == 1 else f"{moved:+d}{edge}",
                        "diverged" if lost is None else shown(lost) if scale > 1 else "",
                        f"{min(means):.3f}",
                        f"{width} of {len(means)}",
                    )
                )
                name = f"{workload}, {'any' if scale == 1 else panel.method}, scale {scale}"
                findings.add(f"{name}: moved", float(moved), least=1.0)
                findings.add(f"{name}: least loss", mean(curve[best]), least=0.01)
                if lost is not None and scale > 1:
                    findings.add(f"{name}: lost", lost, least=0.02)
    findings.table(header, rows)
    findings.leave_out(CUT)
    return findings


FEW = ("fashion-cnn", "stdlib-narrow-sgd")
"""Workloads of the short picture, which the README shows."""

SHORT_PICTURE = Path(__file__).parents[2] / "docs" / "images" / "learning-rate-transfer.png"

NAMES = {
    "fashion-logistic": "logistic regression",
    "fashion-cnn": "CNN",
    "fashion-cnn-plain": "CNN, no momentum",
    "stdlib-narrow-sgd": "transformer, SGD",
    "stdlib-narrow": "transformer, AdamW",
}
"""Workload -> its name in the pictures."""

METHODS = {"linear+": "linear scaling", "sqrt+": "square-root scaling", "AdaScale": "AdaScale"}
"""Method -> its name in the pictures."""


def draw(ledger: Ledger, path: Path) -> None:
    """Draw a row per workload and a column per method; and a short picture of FEW workloads."""
    _picture(ledger, path, [workload for workload, (scales, _) in CELLS.items() if scales])
    _picture(ledger, SHORT_PICTURE, FEW)


def _picture(ledger: Ledger, path: Path, workloads: Sequence[str]) -> None:
    from experiments.lab.draw import figure

    columns = tuple(METHODS)
    drawn, axes = figure(rows=len(workloads), columns=len(columns), height=2.5)
    for row, workload in zip(axes, workloads, strict=True):
        found = {panel.method: panel for panel in panels(ledger, workload)}
        means = [middle(r) for p in found.values() for curve in p.curves.values() for r in curve]
        at_one = [middle(r) for r in found["AdaScale"].curves[1]]
        bottom, top = 0.97 * min(means), 1.5 * max(filter(math.isfinite, at_one))
        for axis, method in zip(row, columns, strict=True):
            axis.set_title(f"{NAMES.get(workload, workload)}: {METHODS[method]}", fontsize=10)
            if method not in found:
                axis.set_axis_off()
                axis.set_title("(linear scaling is not meant for Adam)", fontsize=10)
                continue
            _panel(axis, found[method], bottom=bottom, top=top)
        row[0].set_ylabel("validation loss")
    for axis in axes[-1]:
        axis.set_xlabel("base learning rate")
    axes[0][-1].legend(frameon=False)
    drawn.suptitle(
        "A ring marks the best of seven learning rates. The methods take equally many steps. A "
        "curve that leaves the panel at the top diverged or failed to train.", fontsize=10,
    )  # fmt: skip
    drawn.savefig(path, dpi=110)


def _panel(axis: Any, panel: Panel, *, bottom: float, top: float) -> None:
    from experiments.lab.draw import COLOURS, logarithmic

    for (scale, curve), colour, marker in zip(panel.curves.items(), COLOURS, "osD", strict=False):
        means = [middle(row) for row in curve]
        ends = [value if math.isfinite(value) else 10.0 * top for value in means]
        axis.plot(panel.rates, ends, marker=marker, color=colour, ms=4, label=_batch(scale))
        best = means.index(min(means))
        axis.plot(panel.rates[best], means[best], marker=marker, ms=11, mfc="none",
                  color=colour, mew=1.5)  # fmt: skip
    logarithmic(axis, bottom=bottom, top=top)
    axis.set_xscale("log", base=2)
    axis.set_xticks(panel.rates, [f"{rate:.2g}" for rate in panel.rates], fontsize=7)
    axis.minorticks_off()


def _batch(scale: int) -> str:
    return "base batch size" if scale == 1 else f"{scale} x the base batch size"


PART = Part(title="Learning-rate transfer", find=find, draw=draw)
