"""`largebatch demo`: AdaScale against plain scaling on a small problem, in a minute."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from largebatch.analysis.student import Mean
from largebatch.workbench.amounts import parse_length
from largebatch.workbench.cli.pictures.comparison import draw_comparison, require_matplotlib
from largebatch.workbench.runs.results import Report
from largebatch.workbench.studies.compare.compare import Comparison, compare
from largebatch.workbench.studies.compare.contenders import ANY
from largebatch.workbench.studies.compare.summary import LOSS, ComparisonRow, differences
from largebatch.workbench.workloads import load

DEMO_METHODS = ("adascale", "linear", "none", "linear+", "none+")
SCALES = (1, 8, 32)
SEEDS = 3
BUDGET = "10ep"
OUT = "runs/demo"
PICTURE = "demo.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A comparison on the digits, its picture, and what it showed in plain words."""

    comparison: Comparison
    picture: str
    sentences: tuple[str, ...]


def demo(*, out: str | os.PathLike[str] = OUT, progress: Report | None = None) -> Demo:
    """Compares AdaScale with linear scaling and with none, at equal samples and at equal steps.

    Args:
        out: directory of the picture; the runs are kept in one below it.
        progress: called after each step of each run.

    Raises:
        LargeBatchError: scikit-learn or matplotlib is not installed.
    """
    require_matplotlib()
    comparison = compare(
        "digits",
        methods=DEMO_METHODS,
        scales=SCALES,
        seeds=SEEDS,
        budget=BUDGET,
        out=Path(out) / "runs",
        progress=progress,
    )
    picture = Path(out) / PICTURE
    draw_comparison(comparison, picture)
    return Demo(comparison=comparison, picture=str(picture), sentences=sentences_about(comparison))


def announcement() -> str:
    """How long the runs are, beside what the probe looked at, and where the picture goes."""
    length = parse_length(BUDGET)
    return (
        f"Its runs are {length.amount:g} {length.unit.replace('_', ' ')} long, where the probe "
        f"looked at the workload's full {load('digits').budget_epochs:g} epochs. "
        f"The picture goes to {Path(OUT) / PICTURE}."
    )


def sentences_about(comparison: Comparison) -> tuple[str, ...]:
    """What the numbers say, with the words of the table's quality column: of AdaScale beside scale
    1, of fixed methods at scale 1's samples, and of AdaScale beside linear scaling at its steps."""
    scales = sorted({row.scale for row in comparison.rows} - {1})
    rows = {(row.scale, row.method): row for row in comparison.rows}
    base = rows[1, ANY]
    beside_base = [_beside_base(rows[scale, "adascale"], base) for scale in scales]
    fixed = [
        f"at scale {scale} {_judged(rows[scale, 'linear'])} with linear scaling and "
        f"{_judged(rows[scale, 'none'])} with none"
        for scale in scales
    ]
    beside_linear = [_beside_linear(comparison, scale) for scale in scales]
    return (
        f"Beside scale 1, AdaScale {'; '.join(beside_base)}.",
        f"With the samples of scale 1, where the loss is {_loss(base)}, it is {'; '.join(fixed)}.",
        f"At AdaScale's own steps, its loss less linear scaling's {'; '.join(beside_linear)}.",
    )


def _beside_base(row: ComparisonRow, base: ComparisonRow) -> str:
    if row.steps is None or row.samples is None or base.steps is None or base.samples is None:
        return f"at scale {row.scale} gave nothing to compare, since runs diverged"
    return (
        f"at scale {row.scale} takes {base.steps.value / row.steps.value:.1f} times fewer steps "
        f"and {row.samples.value / base.samples.value:.1f} times the samples, and its loss differs "
        f"by {_difference(row.difference[LOSS])}, quality {row.quality}"
    )


def _beside_linear(comparison: Comparison, scale: int) -> str:
    runs = [run for run in comparison.runs if run.scale == scale]
    stretched = {run.seed: run for run in runs if run.method == "linear+"}
    found = differences([run for run in runs if run.method == "adascale"], stretched)
    if not found:
        return f"at scale {scale} is unknown, since runs diverged"
    low, high = found[LOSS].low, found[LOSS].high
    if low is None or high is None or low <= 0.0 <= high:
        verdict = "neither is shown to be better"
    else:
        verdict = "AdaScale is better" if high < 0.0 else "linear scaling is better"
    return f"at scale {scale} is {_difference(found[LOSS])}: {verdict}"


def _loss(row: ComparisonRow) -> str:
    if not row.validation:
        return "not finite"
    lost = f" ({row.diverged} of {row.runs} runs diverged)" if row.diverged else ""
    return f"{row.validation[LOSS].value:.3f}{lost}"


def _judged(row: ComparisonRow) -> str:
    return f"{_loss(row)} ({row.quality})"


def _difference(mean: Mean) -> str:
    if mean.low is None or mean.high is None:
        return f"{mean.value:+.3f}"
    return f"{mean.value:+.3f} (95 % interval {mean.low:+.3f} to {mean.high:+.3f})"
