"""`largebatch demo`: AdaScale against plain scaling on a small problem, in a minute."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from largebatch.analysis.student import Mean
from largebatch.commands.compare import Comparison, compare
from largebatch.commands.contenders import ANY
from largebatch.commands.draw import draw_comparison, require_matplotlib
from largebatch.commands.results import Report
from largebatch.commands.summary import LOSS, Row, differences

METHODS = ("adascale", "linear", "none", "linear+", "none+")
SCALES = (1, 8, 32)
SEEDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A comparison on the digits, its picture, and what it showed in plain words."""

    comparison: Comparison
    picture: str
    sentences: tuple[str, ...]


def demo(*, out: str | os.PathLike[str] = "runs/demo", progress: Report | None = None) -> Demo:
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
        methods=METHODS,
        scales=SCALES,
        seeds=SEEDS,
        out=Path(out) / "runs",
        progress=progress,
    )
    picture = Path(out) / "demo.png"
    draw_comparison(comparison, picture)
    return Demo(comparison=comparison, picture=str(picture), sentences=sentences_about(comparison))


def sentences_about(comparison: Comparison) -> tuple[str, ...]:
    """What the numbers say about the largest scale: of AdaScale against scale 1, of the fixed
    methods at the same samples, and of linear scaling at AdaScale's steps."""
    largest = max(row.scale for row in comparison.rows)
    rows = {row.method: row for row in comparison.rows if row.scale in (1, largest)}
    return (
        _against_scale_one(rows["adascale"], base=rows[ANY]),
        f"With no more samples than scale 1, the loss at scale {largest} is "
        + " and ".join(_loss(rows[name]) for name in ("linear", "none"))
        + f"; at scale 1 it is {_number(rows[ANY].validation[LOSS].value)}.",
        _at_equal_steps(comparison, scale=largest),
    )


def _against_scale_one(row: Row, *, base: Row) -> str:
    if row.steps is None or row.samples is None or base.steps is None or base.samples is None:
        return f"AdaScale at scale {row.scale}, or scale 1, diverged with every seed."
    quality = (
        "and kept the quality within the margin"
        if row.held
        else "and keeping the quality within the margin was not shown"
    )
    return (
        f"AdaScale at scale {row.scale} took {base.steps.value / row.steps.value:.1f} times fewer "
        f"steps than scale 1, for {row.samples.value / base.samples.value:.1f} times the samples, "
        f"{quality}: {_difference(row.difference[LOSS])} in validation loss."
    )


def _loss(row: Row) -> str:
    if not row.validation:
        return f"not finite with {row.method}"
    lost = f" ({row.diverged} of {row.runs} runs diverged)" if row.diverged else ""
    return f"{_number(row.validation[LOSS].value)} with {row.method}{lost}"


def _at_equal_steps(comparison: Comparison, *, scale: int) -> str:
    runs = [run for run in comparison.runs if run.scale == scale]
    stretched = {run.seed: run for run in runs if run.method == "linear+"}
    found = differences([run for run in runs if run.method == "adascale"], stretched)
    if not found:
        return f"At AdaScale's own steps, no pair of runs at scale {scale} finished."
    difference = found[LOSS]
    low, high = difference.low, difference.high
    if low is None or high is None or low <= 0.0 <= high:
        verdict = "neither is shown to be better"
    else:
        verdict = "AdaScale is better" if high < 0.0 else "linear scaling is better"
    return (
        f"Given AdaScale's steps and samples at scale {scale}, AdaScale less linear scaling is "
        f"{_difference(difference)} in validation loss: {verdict}."
    )


def _difference(mean: Mean) -> str:
    if mean.low is None or mean.high is None:
        return f"{mean.value:+.3f} (one run)"
    return f"{mean.value:+.3f} (95 % interval {mean.low:+.3f} to {mean.high:+.3f})"


def _number(value: float) -> str:
    return f"{value:.3f}"
