"""What a schedule is forecast to reach, and what it costs."""

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
"""How many pieces a run is cut into, if its rate moves within stages."""

POINTS = 24
"""How many pieces a run is cut into, if its rate stays within stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleForecast:
    """A schedule and its forecast.

    Args:
        schedule: its name.
        loss: forecast at its end; `inf` where it diverges.
        samples, steps: of the run.
        seconds: of the run; None without a price.
        largest_batch: in samples.
        reaches: whether the loss is at most the plan's target.
        curve: (samples, loss) along the run.
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
    """Yield the run in pieces of one rate each; a rate that moves is that of the piece's middle."""
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
    """Return a schedule's forecast; whether it reaches a target is for the plan to say.

    Args:
        name: of the schedule.
        schedule: to follow.
        model: whose loss it is.
        price: of a step, or None.
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
        curve=tuple(zip(reached.samples, reached.loss, strict=True)),
    )
