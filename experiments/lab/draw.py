"""Draw pictures whose colors a color-blind reader can tell apart."""

from __future__ import annotations

from typing import Any

COLOURS = ("#555555", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Grey for the reference, then the colors of Okabe and Ito, Color Universal Design, 2008."""


def figure(*, rows: int, columns: int, width: float = 3.6, height: float = 2.9) -> tuple[Any, Any]:
    """Return a figure and its axes [rows][columns], each with a faint grid.

    Args:
        rows: Number of rows of axes.
        columns: Number of columns of axes.
        width: Width of one column in inches.
        height: Height of one row in inches.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(0.6 + width * columns, 0.6 + height * rows), layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(visible=True, alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return drawn, axes


def logarithmic(axis: Any, *, bottom: float | None = None, top: float | None = None) -> None:
    """Give an axis a logarithmic y scale that is labeled with plain numbers, such as 0.2."""
    axis.set_yscale("log")
    _plain(axis.yaxis)
    axis.set_ylim(bottom=bottom, top=top)


def logarithmic_x(axis: Any) -> None:
    """Give an axis a logarithmic x scale that is labeled with plain numbers, such as 200."""
    axis.set_xscale("log")
    _plain(axis.xaxis, subs=(1, 2, 5))


def _plain(axis: Any, *, subs: tuple[int, ...] = (1, 2, 3, 5)) -> None:
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(ticker.NullFormatter())
