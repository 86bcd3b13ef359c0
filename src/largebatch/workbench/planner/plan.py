"""A plan: the schedule that costs least among those whose forecast loss is near the best.

    least     = least loss found at the budget
    target    = (1 + within) least
    plan      = fewest steps or least time with loss <= target

If samples are minimised, the plan is the shortest run that reaches the loss of the best baseline
at the whole budget. The baselines, constant, cosine, Seesaw and the growth relation, are forecast
as well. If one of them is better than the plan, it is the plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from largebatch.core.rule import Rule
from largebatch.workbench.planner.baselines import baselines, late_noise_scale
from largebatch.workbench.planner.forecasts import ScheduleForecast, forecast_schedule
from largebatch.workbench.planner.model import COARSE, FINE
from largebatch.workbench.planner.optimum import ScheduleSpace, least_loss
from largebatch.workbench.planner.request import PlanRequest
from largebatch.workbench.planner.search import (
    cheapest_schedule,
    shortest_schedule,
    space_of,
    whole_schedule,
)
from largebatch.workbench.planner.table import Table
from largebatch.workbench.planner.workers import SpeedUp, speed_ups

ALONE = (
    "Forecasts from a noise scale alone do not rank schedules: their rank correlation with real "
    "runs was 0.35 to 0.93 (experiments/growth/rank.md). Pass record=FILE to plan from a run."
)
FITTED = (
    "Forecasts from a record ranked ten schedules of no higher rate with correlations of 0.90 to "
    "0.95 with real runs, but not those of higher rates (experiments/growth/rank.md)."
)
"""What is known of the forecast's worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The schedule that was found, and the schedules that it was compared with.

    Args:
        name: of the row that is the plan.
        rule, table: the schedule.
        rows: forecasts, the plan's first.
        least_loss, target: see the module.
        workers: what more of them bring; () without a price.
        notes: what was fitted, bounds that are in force, and what the forecast is worth.
    """

    name: str
    rule: Rule
    table: Table
    rows: tuple[ScheduleForecast, ...]
    least_loss: float
    target: float
    workers: tuple[SpeedUp, ...]
    notes: tuple[str, ...]


def plan(request: PlanRequest) -> Plan:
    """Return the best schedule found, and the forecasts of the baselines.

    Raises:
        ValueError: numbers that `model_of` refuses.
    """
    coarse, fine = request.model(bins=COARSE), request.model(bins=FINE)
    sizes = {"budget": request.budget, "base_batch_size": request.base_batch_size}
    space = space_of(request, coarse)
    start, _ = least_loss(space)
    usual = baselines(
        **sizes,
        largest=request.largest,
        max_lr=space.max_lr,
        noise_scale=late_noise_scale(fine, **sizes),
    )
    schedules = {"least loss": whole_schedule(request, space, start), **usual}
    forecasts = {
        name: forecast_schedule(name, schedule, model=fine, price=request.price)
        for name, schedule in schedules.items()
    }
    if request.minimise == "samples":
        target = min(forecasts[name].loss for name in usual)
        found = shortest_schedule(request, space, start, target=target)
    else:
        target = (1.0 + request.within) * min(row.loss for row in forecasts.values())
        found = cheapest_schedule(request, space, start, fine=fine, target=target)
    schedules["plan"] = found
    forecasts["plan"] = forecast_schedule("plan", found, model=fine, price=request.price)
    rows = _ranked(forecasts.values(), request=request, target=target)
    best = schedules[rows[0].schedule]
    return Plan(
        name=rows[0].schedule,
        rule=best.rule,
        table=best.table,
        rows=rows,
        least_loss=min(row.loss for row in rows),
        target=target,
        workers=() if request.price is None else speed_ups(request, request.price, model=coarse),
        notes=_notes(request, space, best.table),
    )


def _ranked(
    forecasts: Iterable[ScheduleForecast], *, request: PlanRequest, target: float
) -> tuple[ScheduleForecast, ...]:
    """The forecasts, first the cheapest one that reaches the target, and the plan at the end."""
    rows = [replace(row, reaches=row.loss <= target * (1.0 + 1e-9)) for row in forecasts]
    best = min((row for row in rows if row.reaches), key=lambda row: _cost(request, row))
    return tuple(sorted(rows, key=lambda row: (row is not best, row.schedule == "plan")))


def _cost(request: PlanRequest, row: ScheduleForecast) -> float:
    if request.minimise == "time" and row.seconds is not None:
        return row.seconds
    return row.samples if request.minimise == "samples" else row.steps


def _notes(request: PlanRequest, space: ScheduleSpace, table: Table) -> tuple[str, ...]:
    recorded = request.recorded
    fit = [] if recorded is None else [f"The record as a quadratic: {recorded.fit}."]
    return (*fit, *_caps(request, space, table), ALONE if recorded is None else FITTED)


def _caps(request: PlanRequest, space: ScheduleSpace, table: Table) -> list[str]:
    notes = []
    fast = [m for m, row in enumerate(table.rows, 1) if row.lr >= 0.999 * space.max_lr]
    large = [m for m, row in enumerate(table.rows, 1) if row.batch_size >= 0.999 * request.largest]
    why = {
        request.max_lr: f"max_lr={request.max_lr}",
        space.model.max_lr: "the model's stability",
    }.get(space.max_lr, "the largest rate in the record (pass max_lr=4 to go above it)")
    if fast:
        notes.append(
            f"The rate is capped at x{space.max_lr:.4g} by {why} in stage {_listed(fast)}."
        )
    if large:
        cause = "the budget" if request.memory_limit is None else "memory or budget"
        notes.append(
            f"The batch is capped at {request.largest:,} samples by {cause} in stage "
            f"{_listed(large)}."
        )
    return notes


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
