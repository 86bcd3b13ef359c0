"""Measure learning-rate transfer: whether the best base learning rate of scale 1 stays the best.

Each workload is trained with seven base learning rates, at scale 1 and at larger scales. At the
same base learning rate, scale and seed, linear scaling and square-root scaling take as many
optimizer steps as AdaScale; the + in linear+ and sqrt+ stands for that. The best base learning rate
is the one with the lowest mean validation loss over seeds.

The column "doublings from scale 1" has the number of doublings between the best base learning rate
of the row and that of scale 1. If the best base learning rate is the smallest or the largest of the
seven, the true number of doublings may be larger. The column "cost of not tuning" has the
validation loss at the best base learning rate of scale 1 minus the lowest validation loss of the
row. The difference is paired by seed and has a 95 % confidence interval. The last column counts the
base learning rates whose mean validation loss is at most 1.1 times the lowest. See
[the terms](../README.md#terms) for scale.
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
"""Workload -> (scales above 1, number of seeds)."""

CUT: dict[str, str] = {
    "scale 32 of the CNN and the transformers": "the runs would take two hours on two cores",
    "fashion-resnet8": "the runs would take an hour and a half on two cores",
    "the transformers with 0.5M parameters": "a run takes four times as long as a run of the "
    "narrow transformers",
}
"""What was not measured -> the reason."""

WIDE = 1.1
"""Largest ratio to the lowest loss with which a learning rate counts as nearly best."""

Curve = list[list[float]]
"""Validation losses, [learning rates][seeds]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Hold the validation losses of one workload with one method.

    Args:
        workload: Name of the workload.
        method: Name of the method.
        rates: Base learning rates.
        curves: Scale -> validation losses.
    """

    workload: str
    method: str
    rates: list[float]
    curves: dict[int, Curve]


def panels(ledger: Ledger, workload: str) -> list[Panel]:
    """Return the panels of linear scaling, square-root scaling and AdaScale for one workload.

    Linear scaling is left out for AdamW, because it is not meant for Adam.
    """
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
    """Return the mean over seeds; infinite if a run diverged."""
    return mean(row).value if row and all(map(math.isfinite, row)) else math.inf


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    header = ("workload", "method", "scale", "best base learning rate", "doublings from scale 1",
              "cost of not tuning", "lowest validation loss",
              f"learning rates within {WIDE:g} times the lowest loss")  # fmt: skip
    rows = []
    shifts: dict[str, list[int]] = {method: [] for method in METHODS}
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
                if scale > 1:
                    shifts[panel.method].append(moved)
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
    findings.text.append(_answer(shifts))
    findings.table(header, rows)
    findings.method(__doc__.split("\n\n", 1)[1])
    findings.leave_out(CUT)
    return findings


def _answer(shifts: dict[str, list[int]]) -> str:
    """Return the first paragraph of the page.

    Args:
        shifts: Method -> doublings between the best base learning rates, one per comparison.
    """
    words = ["Does the base learning rate that is best at the base batch size stay the best?"]
    for method, found in shifts.items():
        words.append(
            f"With {METHODS[method]} at a larger batch size, the best base learning rate moves by "
            f"{min(found):+d} to {max(found):+d} doublings ({len(found)} comparisons)."
        )
    return " ".join(words)


FEW = ("fashion-cnn", "stdlib-narrow-sgd")
"""Workloads of the short picture, which the README of the project shows."""

SHORT_PICTURE = Path(__file__).parents[2] / "docs" / "images" / "learning-rate-transfer.png"

NAMES = {
    "fashion-logistic": "logistic regression",
    "fashion-cnn": "CNN",
    "fashion-cnn-plain": "CNN, no momentum",
    "stdlib-narrow-sgd": "transformer, SGD",
    "stdlib-narrow": "transformer, AdamW",
}
"""Workload -> name of the workload in the pictures."""

METHODS = {"linear+": "linear scaling", "sqrt+": "square-root scaling", "AdaScale": "AdaScale"}
"""Method -> name of the method in the pictures and in the first paragraph of the page."""


def draw(ledger: Ledger, path: Path) -> None:
    """Draw a row per workload and a column per method, and a short picture of `FEW` workloads."""
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
