"""Draw a comparison of methods: the validation loss over samples and over base steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largebatch.core.errors import LargeBatchError
from largebatch.methods import METHODS
from largebatch.workbench.runs.results import RunResult
from largebatch.workbench.studies.compare.compare import Comparison
from largebatch.workbench.studies.compare.contenders import ANY
from largebatch.workbench.studies.compare.summary import LOSS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colors that color-blind readers can distinguish (Okabe and Ito, Color Universal Design, 2008)."""

GREY = "#555555"
"""Color of scale 1, the reference in every panel."""

INCHES_PER_NAME = 2.9
"""Width in inches of one column of the legend."""

FORMATS = (".png", ".pdf", ".svg")
"""Supported endings of a picture file."""


class PlotMissing(LargeBatchError):
    """Raised if matplotlib is not installed."""


def draw_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the picture: one column per scale, one color per method, scale 1 in gray.

    The curve of a method with a + after its name, such as "linear+", is dashed and has the color of
    the method without the +. Thin lines are single runs, and the thick line is their mean. The
    panels over base steps are drawn only if a method measures a gain, because otherwise base steps
    are proportional to samples.

    Raises:
        PlotMissing: matplotlib is not installed.
        ValueError: The comparison contains only scale 1.
    """
    figure_class = require_matplotlib()
    scales = sorted({run.scale for run in comparison.runs} - {1})
    if not scales:
        raise ValueError(
            "The comparison contains only scale 1, and a picture requires a larger scale. Pass "
            "--scales 1,8,32"
        )
    names = list(dict.fromkeys(run.method for run in comparison.runs if run.scale > 1))
    bare = list(dict.fromkeys(name.removesuffix("+") for name in names))
    labels = method_labels(names)
    clocks = CLOCKS if any(map(_measures_gain, names)) else {"samples": CLOCKS["samples"]}
    width = 1.8 + 4.2 * len(scales)
    figure = figure_class(figsize=(width, 0.9 + 3.4 * len(clocks)), layout="constrained")
    axes = figure.subplots(len(clocks), len(scales), squeeze=False, sharey=True)
    base = [run for run in comparison.runs if run.method == ANY]
    for column, scale in enumerate(scales):
        for row, (clock, axis) in enumerate(clocks.items()):
            panel = axes[row][column]
            first = f"scale 1 (batch size {base[0].batch_size})" if base else "scale 1"
            _draw(panel, base, clock, color=GREY, dashed=False, label=first)
            for name in names:
                runs = [r for r in comparison.runs if r.scale == scale and r.method == name]
                colour = COLOURS[bare.index(name.removesuffix("+")) % len(COLOURS)]
                dashed = name.endswith("+")
                _draw(panel, runs, clock, color=colour, dashed=dashed, label=labels[name])
            panel.set_xlabel(axis)
            _style(panel)
        sizes = [run.batch_size for run in comparison.runs if run.scale == scale]
        axes[0][column].set_title(f"scale {scale} (batch size {max(sizes)})", fontsize=11)
    for row in axes:
        row[0].set_ylabel("validation loss")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=max(1, min(len(names) + 1, int(width / INCHES_PER_NAME))),
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(f"{comparison.workload} (thin lines: single runs; thick lines: mean over runs)")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


CLOCKS = {
    "samples": "training samples",
    "base_steps": "base steps (steps of the base batch size)",
}
"""Label of each horizontal axis, by the attribute of `Point` that the axis shows."""


def method_labels(names: Sequence[str]) -> dict[str, str]:
    """Return the label of each method in the legend; the labels explain a + after a name.

    >>> method_labels(["adascale", "linear", "linear+"])["linear+"]
    "linear, adascale's number of steps"

    Args:
        names: Names of the methods in a comparison.
    """
    own = next((name for name in names if _measures_gain(name)), "adascale")
    labels = {}
    for name in names:
        if name.endswith("+"):
            labels[name] = f"{name.removesuffix('+')}, {own}'s number of steps"
        elif f"{name}+" in names:
            labels[name] = f"{name}, scale 1's number of samples"
        else:
            labels[name] = name
    return labels


def _measures_gain(name: str) -> bool:
    return name in METHODS and METHODS[name].own_clock


def check_picture(path: str | os.PathLike[str]) -> None:
    """Check before the runs start that a picture can be drawn to the given file.

    Raises:
        PlotMissing: matplotlib is not installed.
        ValueError: The ending of the file is not in `FORMATS`.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(
            f"--plot {path} was given, but a picture file must end with {', '.join(FORMATS[:-1])} "
            f"or {FORMATS[-1]}. Pass --plot picture.png"
        )
    require_matplotlib()


def require_matplotlib() -> type[Any]:
    """Return matplotlib's class `Figure`, which draws to files without a display.

    Raises:
        PlotMissing: matplotlib is not installed. The message contains the command that installs
            matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PlotMissing(
            "A picture requires the package matplotlib, which is not installed. "
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
    panel.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
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
