"""Draw a plan: batch size, learning rate and forecast loss along the run."""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path
from typing import Any

from largebatch.workbench.cli.pictures.comparison import COLOURS, GREY, require_matplotlib
from largebatch.workbench.planner.forecasts import pieces_of
from largebatch.workbench.planner.plan import Plan
from largebatch.workbench.planner.table import clock_schedule


def draw_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the picture: the planned schedule above, the forecast loss of all schedules below.

    Raises:
        PlotMissing: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=(7.5, 8.4), layout="constrained")
    batch, rate, loss = figure.subplots(3, 1, sharex=True)
    edges, sizes, factors = _course(plan)
    batch.stairs(sizes, edges, baseline=None, color=COLOURS[0], linewidth=2.2)
    batch.set_ylabel("batch size (samples)")
    rate.stairs(factors, edges, baseline=None, color=COLOURS[0], linewidth=2.2)
    rate.set_ylabel("factor on the\nbase learning rate")
    for row, colour in zip(plan.rows, (*COLOURS, GREY), strict=False):
        x, y = zip(*row.curve, strict=True)
        planned = row.schedule == plan.name
        loss.plot(
            x,
            y,
            color=colour,
            linewidth=2.2 if planned else 1.2,
            marker=".",
            markersize=4,
            label=LABELS.get(row.schedule, row.schedule) + ": the plan" * planned,
        )
    loss.axhline(plan.target, color=GREY, linewidth=0.8, linestyle="--", label="target loss")
    loss.set_ylabel("forecast loss")
    loss.set_xlabel("training samples")
    figure.legend(loc="outside lower center", frameon=False, ncols=2, fontsize=9)
    for panel in (batch, rate, loss):
        _style(panel)
    figure.suptitle(
        f"Planned schedule: {plan.table.steps:,} steps, {plan.table.budget:,} training samples"
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


LABELS = {
    "plan": "cheapest schedule found",
    "least loss": "lowest loss found",
    "constant": "constant batch size and lr",
    "cosine": "constant batch size, cosine lr",
    "seesaw": "Seesaw (growing batch size, decaying lr)",
    "growth": "growing batch size and lr",
}
"""Meaning of each schedule in the legend."""


def _course(plan: Plan) -> tuple[list[float], list[float], list[float]]:
    """Return the edges in samples, batch sizes and learning-rate factors of a run's sections.

    Within a section, the batch size and the learning rate are constant.
    """
    table = plan.table
    schedule = clock_schedule(
        plan.rule,
        budget=table.budget,
        base_batch_size=table.base_batch_size,
        batch_size=table.rows[0].batch_size,
    )
    pieces = list(pieces_of(schedule))
    ends = accumulate(batch * steps for batch, _, steps in pieces)
    edges = [0.0, *(min(end, float(table.budget)) for end in ends)]
    return edges, [batch for batch, _, _ in pieces], [factor for _, factor, _ in pieces]


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
