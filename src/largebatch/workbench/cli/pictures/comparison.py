"""A picture of a comparison: validation loss over samples and over base steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largebatch.core.errors import LargeBatchError
from largebatch.workbench.runs.results import RunResult
from largebatch.workbench.studies.compare.compare import Comparison
from largebatch.workbench.studies.compare.contenders import ANY
from largebatch.workbench.studies.compare.summary import LOSS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito, Color Universal Design, 2008, which colour-blind readers tell apart."""

GREY = "#555555"
"""Scale 1, the reference in every panel."""


FORMATS = (".png", ".pdf", ".svg")
"""Endings of a picture's file."""


class PlotMissing(LargeBatchError):
    """matplotlib is not installed."""


def draw_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Writes the picture: a column for each scale, a colour for each method, scale 1 in grey.

    A method and its + form share a colour; the + form is dashed. Thin lines are runs, the thick
    line is their mean.

    Raises:
        PlotMissing: matplotlib is not installed.
        ValueError: there is no larger scale to draw.
    """
    figure_class = require_matplotlib()
    scales = sorted({run.scale for run in comparison.runs} - {1})
    if not scales:
        raise ValueError("There is only scale 1 to draw. Compare larger ones: --scales 1,8,32")
    names = list(dict.fromkeys(run.method for run in comparison.runs if run.scale > 1))
    bare = list(dict.fromkeys(name.removesuffix("+") for name in names))
    figure = figure_class(figsize=(1.5 + 4.2 * len(scales), 7.2), layout="constrained")
    axes = figure.subplots(2, len(scales), squeeze=False, sharey=True)
    base = [run for run in comparison.runs if run.method == ANY]
    for column, scale in enumerate(scales):
        for row, clock in enumerate(("samples", "base_steps")):
            panel = axes[row][column]
            _draw(panel, base, clock, color=GREY, dashed=False, label="scale 1")
            for name in names:
                runs = [r for r in comparison.runs if r.scale == scale and r.method == name]
                colour = COLOURS[bare.index(name.removesuffix("+")) % len(COLOURS)]
                _draw(panel, runs, clock, color=colour, dashed=name.endswith("+"), label=name)
            panel.set_xlabel({"samples": "training samples", "base_steps": "base steps"}[clock])
            _style(panel)
        axes[0][column].set_title(f"scale {scale}")
    for row in axes:
        row[0].set_ylabel("validation loss")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"{comparison.workload}: thin lines are runs, thick lines their means")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def check_picture(path: str | os.PathLike[str]) -> None:
    """Refuses, before hours of runs, a picture that could not be drawn.

    Raises:
        PlotMissing: matplotlib is not installed.
        ValueError: a form of file that is none of `FORMATS`.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(
            f"A picture is one of {', '.join(FORMATS)}; got {str(path)!r}. Example: --plot runs.png"
        )
    require_matplotlib()


def require_matplotlib() -> type[Any]:
    """matplotlib's `Figure`, which draws to files without a display.

    Raises:
        PlotMissing: matplotlib is not installed; says how.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PlotMissing(
            "A plot needs matplotlib, which is not installed. "
            "Install it: pip install 'largebatch[plot]'"
        ) from error
    return Figure


def _style(panel: Any) -> None:
    from matplotlib import ticker

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panel.yaxis.set_minor_formatter(ticker.NullFormatter())
    panel.xaxis.set_major_locator(ticker.MaxNLocator(5))
    panel.grid(visible=True, alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _draw(
    panel: Any, runs: Sequence[RunResult], clock: str, *, color: str, dashed: bool, label: str
) -> None:
    curves = [
        ([getattr(point, clock) for point in run.curve], [p.validation[LOSS] for p in run.curve])
        for run in runs
        if run.curve
    ]
    style = "--" if dashed else "-"
    for x, y in curves:
        panel.plot(x, y, style, color=color, linewidth=0.7, alpha=0.4)
    length = min((len(x) for x, _ in curves), default=0)
    mean_x = [sum(x[i] for x, _ in curves) / len(curves) for i in range(length)]
    mean_y = [sum(y[i] for _, y in curves) / len(curves) for i in range(length)]
    panel.plot(mean_x, mean_y, style, color=color, linewidth=2.2, label=label)
