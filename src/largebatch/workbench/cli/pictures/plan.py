"""A picture of a plan: its batch and rate along the run, and the forecasts of the loss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from largebatch.workbench.cli.pictures.comparison import COLOURS, GREY, require_matplotlib
from largebatch.workbench.planner.plan import Plan


def draw_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Writes the picture: above the schedule, below the loss of each row over samples.

    Raises:
        PlotMissing: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=(7.5, 8.0), layout="constrained")
    batch, rate, loss = figure.subplots(3, 1, sharex=True)
    rows = plan.table.rows
    edges = [row.samples for row in rows] + [plan.table.budget]
    batch.stairs([row.batch_size for row in rows], edges, color=COLOURS[0], linewidth=2.2)
    batch.set_ylabel("batch in samples")
    rate.stairs([row.lr for row in rows], edges, color=COLOURS[0], linewidth=2.2)
    rate.set_ylabel("factor on the base rate")
    for row, colour in zip(plan.rows, (*COLOURS, GREY), strict=False):
        x, y = zip(*row.curve, strict=True)
        wide = 2.2 if row.schedule == plan.name else 1.2
        loss.plot(x, y, color=colour, linewidth=wide, marker=".", markersize=4, label=row.schedule)
    loss.axhline(plan.target, color=GREY, linewidth=0.8, linestyle="--", label="target")
    loss.set_ylabel("forecast loss")
    loss.set_xlabel("training samples")
    loss.legend(frameon=False, ncols=3)
    for panel in (batch, rate, loss):
        _style(panel)
    figure.suptitle(f"Schedule: {plan.name}, {plan.table.steps:,} steps")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _style(panel: Any) -> None:
    from matplotlib import ticker

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panel.yaxis.set_minor_formatter(ticker.NullFormatter())
    panel.grid(visible=True, alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
