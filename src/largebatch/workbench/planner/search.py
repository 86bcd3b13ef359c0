"""Search for the schedule that a request asks for, rounded to whole samples and steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from largebatch.workbench.planner.forecasts import pieces_of
from largebatch.workbench.planner.model import QuadraticModel, Stage
from largebatch.workbench.planner.optimum import ScheduleSpace, cheapest, smallest_budget
from largebatch.workbench.planner.request import PlanRequest
from largebatch.workbench.planner.rounding import round_stages
from largebatch.workbench.planner.table import ClockSchedule
from largebatch.workbench.quadratic.spectrum import Array

MARGINS = (0.95, 0.8, 0.5, 0.2)
"""Fractions of the allowed excess loss that the search may use; rounding may use the rest."""


def space_of(request: PlanRequest, model: QuadraticModel) -> ScheduleSpace:
    """Return the set of schedules to search for a request."""
    seen = model.seen if request.max_lr is None else request.max_lr
    return ScheduleSpace(
        model=model,
        budget=request.budget,
        smallest=request.base_batch_size,
        largest=request.largest,
        max_lr=min(model.max_lr, seen or math.inf),
        stages=request.stages,
    )


def whole_schedule(request: PlanRequest, space: ScheduleSpace, at: Array) -> ClockSchedule:
    """Return the schedule of a point in the search space, rounded to whole samples and steps."""
    return round_stages(space.stages_of(at), base_batch_size=request.base_batch_size)


def cheapest_schedule(
    request: PlanRequest, space: ScheduleSpace, start: Array, *, fine: QuadraticModel, target: float
) -> ClockSchedule:
    """Return the cheapest schedule found that reaches the target after rounding.

    Args:
        request: Request that defines the cost as a number of steps or of seconds.
        space: Set of schedules to search.
        start: Point with the lowest loss, which is returned if no cheaper point reaches the target.
        fine: Model with many bins, which decides whether a schedule reaches the target.
        target: Target loss.
    """
    least = space.model.final_loss(space.stages_of(start))
    for part in MARGINS:
        within = (1.0 + part * request.within) * least
        at = cheapest(space, price=_price(request), target=within, start=start)
        schedule = whole_schedule(request, space, at)
        if fine.forecast(list(pieces_of(schedule))).loss[-1] <= target:
            return schedule
    return whole_schedule(request, space, start)


def shortest_schedule(
    request: PlanRequest, space: ScheduleSpace, start: Array, *, target: float
) -> ClockSchedule:
    """Return the schedule with the fewest samples found that reaches the target.

    Args:
        request: Request that defines the base batch size.
        space: Set of schedules with the whole budget.
        start: Point with the lowest loss, which is returned if the target is infinite.
        target: Target loss.
    """
    if target < math.inf:
        space, start = smallest_budget(space, target=0.99 * target, start=start)
    return whole_schedule(request, space, start)


def _price(request: PlanRequest) -> Callable[[Sequence[Stage]], float]:
    def total(stages: Sequence[Stage]) -> float:
        steps = sum(k for _, _, k in stages)
        if request.minimise == "steps" or request.price is None:
            return steps
        samples = sum(b * k for b, _, k in stages)
        return request.price.total(steps=steps, samples=samples)

    return total
