"""Compare AdaScale with linear scaling on the digits workload, for `largebatch demo`."""

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
    """Hold the comparison on the digits, the path of its picture, and its results in sentences."""

    comparison: Comparison
    picture: str
    sentences: tuple[str, ...]


def demo(*, out: str | os.PathLike[str] = OUT, progress: Report | None = None) -> Demo:
    """Compare AdaScale with linear scaling and with no scaling, at equal samples and equal steps.

    Args:
        out: Directory for the picture; the runs are kept in its subdirectory `runs`.
        progress: Function that receives a report after each step of each run.

    Raises:
        LargeBatchError: The package scikit-learn or matplotlib is not installed.
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
    """Return a text that states the length of the runs and the path of the picture."""
    length = parse_length(BUDGET)
    return (
        f"Each run takes {length.amount:g} {length.unit.replace('_', ' ')}. The estimates of the "
        f"probe above are for the workload's full {load('digits').budget_epochs:g} epochs. "
        f"The picture will be written to {Path(OUT) / PICTURE}."
    )


def sentences_about(comparison: Comparison) -> tuple[str, ...]:
    """Return the results in sentences, three per scale.

    The first sentence compares AdaScale with scale 1. The second sentence states the losses of
    linear scaling and of no scaling after the same number of samples as the run at scale 1. The
    third sentence compares AdaScale with linear scaling at the same number of steps. The word after
    "Quality" comes from the column "quality" of the comparison's table.
    """
    scales = sorted({row.scale for row in comparison.rows} - {1})
    rows = {(row.scale, row.method): row for row in comparison.rows}
    base = rows[1, ANY]
    sentences = []
    for scale in scales:
        linear, none = rows[scale, "linear"], rows[scale, "none"]
        equal_samples = (
            f"Scale {scale}, as many samples as scale 1: the validation loss is {_loss(base)} at "
            f"scale 1, {_judged(linear)} with linear scaling and {_judged(none)} without scaling "
            "the learning rate."
        )
        against_base = _against_base(rows[scale, "adascale"], base)
        sentences += [against_base, equal_samples, _against_linear(comparison, scale)]
    return tuple(sentences)


def _against_base(row: ComparisonRow, base: ComparisonRow) -> str:
    if row.steps is None or row.samples is None or base.steps is None or base.samples is None:
        return f"Scale {row.scale}: AdaScale cannot be compared with scale 1 because runs diverged."
    return (
        f"Scale {row.scale}: AdaScale takes {base.steps.value / row.steps.value:.1f} times fewer "
        f"steps than scale 1 and uses {row.samples.value / base.samples.value:.1f} times the "
        f"samples. Its validation loss minus that of scale 1 is {_difference(row.difference[LOSS])}"
        f". Quality: {row.quality}."
    )


def _against_linear(comparison: Comparison, scale: int) -> str:
    runs = [run for run in comparison.runs if run.scale == scale]
    stretched = {run.seed: run for run in runs if run.method == "linear+"}
    found = differences([run for run in runs if run.method == "adascale"], stretched)
    start = f"Scale {scale}, as many steps as AdaScale: "
    if not found:
        return f"{start}AdaScale cannot be compared with linear scaling because runs diverged."
    low, high = found[LOSS].low, found[LOSS].high
    if low is None or high is None or low <= 0.0 <= high:
        verdict = "neither method is shown to be better"
    else:
        verdict = "AdaScale is better" if high < 0.0 else "linear scaling is better"
    return (
        f"{start}the validation loss of AdaScale minus that of linear scaling is "
        f"{_difference(found[LOSS])}; {verdict}."
    )


def _loss(row: ComparisonRow) -> str:
    if not row.validation:
        return "not finite"
    lost = f" ({row.diverged} of {row.runs} runs diverged)" if row.diverged else ""
    return f"{row.validation[LOSS].value:.3f}{lost}"


def _judged(row: ComparisonRow) -> str:
    return f"{_loss(row)} (quality: {row.quality})"


def _difference(mean: Mean) -> str:
    if mean.low is None or mean.high is None:
        return f"{mean.value:+.3f}"
    return f"{mean.value:+.3f} (95 % interval {mean.low:+.3f} to {mean.high:+.3f})"
