"""Forecast the loss and the cost of a schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from largebatch.core.rule import names_within
from largebatch.workbench.planner.model import QuadraticModel, Stage
from largebatch.workbench.planner.request import Price
from largebatch.workbench.planner.table import ClockSchedule

PIECES = 96
"""Number of sections into which a forecast splits a run if the lr changes within stages."""

POINTS = 24
"""Number of sections into which a forecast splits a run if the lr is constant within stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleForecast:
    """Hold the forecast of one schedule.

    Args:
        schedule: Name of the schedule.
        loss: Forecast loss at the end of the run; `inf` if the run diverges.
        samples, steps: Number of samples and optimizer steps of the run.
        seconds: Duration of the run in seconds; None if the duration of a step is unknown.
        largest_batch: Largest batch size, in samples.
        reaches: True if the loss is at most the target loss of the plan.
        curve: Pairs (samples, loss) along the run.
    """

    schedule: str
    loss: float
    samples: int
    steps: int
    seconds: float | None
    largest_batch: int
    reaches: bool
    curve: tuple[tuple[float, float], ...]


def pieces_of(schedule: ClockSchedule) -> Iterator[Stage]:
    """Split a run into sections and yield each section with a constant learning rate.

    If the learning rate changes within a section, the learning rate in the middle of the section is
    used.
    """
    smooth = names_within(schedule.rule) & {"Schedule", "WarmUp", "Legw"}
    most = max(2, math.ceil((PIECES if smooth else POINTS) / len(schedule.stages)))
    for stage in schedule.stages:
        count = min(stage.steps, most)
        cuts = [stage.steps * i // count for i in range(count + 1)]
        for low, high in pairwise(cuts):
            rate = stage.lr_after((low + high) // 2)
            yield float(stage.first.batch_size), rate, float(high - low)


def forecast_schedule(
    name: str, schedule: ClockSchedule, *, model: QuadraticModel, price: Price | None
) -> ScheduleForecast:
    """Return the forecast of a schedule; the field `reaches` is false until a plan sets it.

    Args:
        name: Name of the schedule.
        schedule: Schedule to follow.
        model: Quadratic that predicts the loss.
        price: Duration of a step, or None if the duration is unknown.
    """
    reached = model.forecast(list(pieces_of(schedule)))
    steps, samples = schedule.table.steps, schedule.table.budget
    return ScheduleForecast(
        schedule=name,
        loss=reached.loss[-1],
        samples=samples,
        steps=steps,
        seconds=None if price is None else price.total(steps=steps, samples=samples),
        largest_batch=max(row.batch_size for row in schedule.table.rows),
        reaches=False,
        # The last batch is cut at the budget, but the pieces contain whole batches.
        curve=tuple(
            (min(x, float(samples)), y) for x, y in zip(reached.samples, reached.loss, strict=True)
        ),
    )
