"""Draw the answers of `largebatch critical`: the critical batch size along the run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largebatch.workbench.cli.pictures.comparison import COLOURS, GREY, require_matplotlib
from largebatch.workbench.studies.critical.result import Critical
from largebatch.workbench.studies.critical.settings import CriticalMethod
from largebatch.workbench.studies.critical.values import Answer, CriticalBatch

LOOKS: dict[CriticalMethod, str] = dict(zip(("noise", "branches", "sweep"), COLOURS, strict=False))

APART = {"noise": -0.006, "branches": 0.006, "sweep": 0.0}
"""Horizontal shift of each method as a fraction of the run, so that bars do not overlap."""

MEANINGS: dict[CriticalMethod, str] = {
    "noise": "noise (measured gradient noise scale)",
    "branches": "branches (short runs from points of the base run)",
    "sweep": "sweep (whole runs to a target loss)",
}
"""Meaning of each method in the legend."""


def draw_critical(result: Critical, path: str | os.PathLike[str]) -> None:
    """Write the picture of `draw_on` with a title and a legend.

    Raises:
        PlotMissing: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=(8.5, 5.6), layout="constrained")
    panel = figure.subplots()
    draw_on(panel, result)
    _, labels = panel.get_legend_handles_labels()
    if labels:
        figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    figure.suptitle(f"Critical batch size of {result.name}")
    panel.set_title(
        "bars and bands: 95 % confidence intervals; an arrow means: no upper or lower bound",
        fontsize=9,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_on(panel: Any, result: Critical) -> None:
    """Draw the answers on axes of matplotlib, with one color per method.

    Bars are confidence intervals; an arrow marks an interval without an upper or lower bound. The
    method sweep gives answers for the whole run, which are drawn as lines with bands.
    """
    from matplotlib import ticker

    low, high = _span(result)
    panel.axhline(result.base_batch_size, color=GREY, linewidth=1.0, linestyle=":")
    panel.annotate(
        "base batch size",
        (1.0, result.base_batch_size),
        color=GREY,
        ha="right",
        va="bottom",
        fontsize=8,
    )
    for answer in result.answers:
        _points(panel, answer, low=low, high=high)
        _lines(panel, answer)
    panel.set_yscale("log", base=2)
    panel.set_ylim(low, high)
    panel.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.set_xlim(-0.02, 1.02)
    panel.xaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    panel.set_xlabel(f"position in the run (100 % = {result.budget_samples:,} samples)")
    panel.set_ylabel("critical batch size (samples)")
    panel.grid(visible=True, alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _points(panel: Any, answer: Answer, *, low: float, high: float) -> None:
    """Draw the findings along the run; without an upper bound, an arrow replaces the point."""
    colour = LOOKS[answer.method]
    label = MEANINGS[answer.method]
    xs, ys = [], []
    for finding in [f for f in answer.findings if f.start is not None]:
        batch, x = finding.batch, _middle(finding) + APART[answer.method]
        if batch is None:  # NaN makes a gap, so that the line does not cross the missing point
            xs.append(x)
            ys.append(math.nan)
            continue
        bounded = math.isfinite(batch.high)
        top = batch.high if bounded else high
        panel.plot([x, x], [max(batch.low, low), top], color=colour, linewidth=1.6, alpha=0.8)
        if not bounded:
            panel.plot([x], [0.94 * high], "^", color=colour, markersize=6, clip_on=False)
        if batch.low <= 0.0:
            panel.plot([x], [1.06 * low], "v", color=colour, markersize=6, clip_on=False)
        xs.append(x)
        ys.append(batch.value if bounded else math.nan)
    if not all(map(math.isnan, ys)):
        panel.plot(xs, ys, "o-", color=colour, linewidth=1.0, markersize=5, label=label)


def _lines(panel: Any, answer: Answer) -> None:
    """Draw the findings that are valid for the whole run as horizontal lines."""
    whole = [f for f in answer.findings if f.start is None and f.batch is not None]
    styles = ("--", "-.")
    for finding, style in zip(whole, styles, strict=False):
        batch, colour = finding.batch, LOOKS[answer.method]
        assert batch is not None, "findings without a batch were filtered out"
        if not math.isfinite(batch.high):
            continue
        panel.axhline(
            batch.value,
            color=colour,
            linestyle=style,
            linewidth=1.4,
            label=f"{MEANINGS[answer.method]}: {finding.where}",
        )
        if answer.method == "sweep":
            panel.axhspan(batch.low, batch.high, color=colour, alpha=0.12, linewidth=0)


def _span(result: Critical) -> tuple[float, float]:
    """Return the limits of the vertical axis, a factor of 2 beyond all known values."""
    ends = [float(result.base_batch_size)]
    for answer in result.answers:
        for batch in (f.batch for f in answer.findings if f.batch is not None):
            bounded = math.isfinite(batch.high)
            ends += _finite([batch.low, batch.high, *([batch.value] if bounded else [])])
    return min(ends) / 2, max(ends) * 2


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if 0.0 < value < math.inf]


def _middle(finding: CriticalBatch) -> float:
    assert finding.start is not None, "the finding must lie along the run"
    assert finding.stop is not None, "the finding must lie along the run"
    return (finding.start + finding.stop) / 2
