"""Plan a run: find the cheapest schedule whose forecast loss is close to the lowest loss.

    least     = lowest forecast loss found at the budget
    target    = (1 + within) * least
    plan      = fewest steps or shortest time with loss <= target

If samples are minimized, the plan is the shortest run that reaches the loss of the best baseline.
The baselines are the constant, cosine, Seesaw and growth schedules at the whole budget. If a
baseline costs less than the schedule found by the search, the baseline becomes the plan.
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
    "Forecasts from a noise scale alone do not rank schedules reliably: their rank correlation "
    "with real runs was 0.35 to 0.93 (experiments/growth/rank.md). Pass record=FILE to plan from a "
    "recorded run."
)
"""Note on the accuracy of a forecast from a noise scale."""
FITTED = (
    "Forecasts from a record had rank correlations of 0.90 to 0.95 with real runs of ten schedules "
    "whose learning rates did not exceed those of the record. Schedules with higher learning rates "
    "were not ranked correctly (experiments/growth/rank.md)."
)
"""Note on the accuracy of a forecast from a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Hold the planned schedule and the forecasts of the schedules it was compared with.

    Args:
        name: Name of the planned schedule, which is the first of `rows`.
        rule, table: Planned schedule as a rule and as a table of stages.
        rows: Forecasts of all schedules, starting with the planned schedule.
        least_loss: Lowest forecast loss of all schedules.
        target: Loss that the planned schedule had to reach.
        workers: Shortest time for each number of workers; () if the duration of a step is unknown.
        notes: Quality of the fit, active bounds and accuracy of the forecast, as sentences.
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
    """Return the cheapest schedule found, and the forecasts of the baselines.

    >>> from largebatch import workbench
    >>> request = workbench.plan_request(
    ...     budget=20_000, base_batch_size=16, noise_scales=[100.0], stages=2
    ... )
    >>> found = workbench.plan(request)
    >>> found.rows[0].reaches, found.table.steps < found.table.constant_steps
    (True, True)

    Args:
        request: Budget, base batch size, noise scales or record, and bounds of the plan.

    Raises:
        ValueError: The noise scales or the exponent do not describe a model; see `model_of`.
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
    """Return the forecasts with the cheapest schedule that reaches the target first.

    The schedule that the search found comes last, unless it is the cheapest.
    """
    rows = [replace(row, reaches=row.loss <= target * (1.0 + 1e-9)) for row in forecasts]
    best = min((row for row in rows if row.reaches), key=lambda row: _cost(request, row))
    return tuple(sorted(rows, key=lambda row: (row is not best, row.schedule == "plan")))


def _cost(request: PlanRequest, row: ScheduleForecast) -> float:
    if request.minimise == "time" and row.seconds is not None:
        return row.seconds
    return row.samples if request.minimise == "samples" else row.steps


def _notes(request: PlanRequest, space: ScheduleSpace, table: Table) -> tuple[str, ...]:
    recorded = request.recorded
    fit = [] if recorded is None else [f"Quadratic fitted to the record: {recorded.fit}."]
    return (*fit, *_caps(request, space, table), ALONE if recorded is None else FITTED)


def _caps(request: PlanRequest, space: ScheduleSpace, table: Table) -> list[str]:
    notes = []
    fast = [m for m, row in enumerate(table.rows, 1) if row.lr >= 0.999 * space.max_lr]
    large = [m for m, row in enumerate(table.rows, 1) if row.batch_size >= 0.999 * request.largest]
    why = {
        request.max_lr: f"max_lr={request.max_lr}",
        space.model.max_lr: "the stability limit of the model",
    }.get(
        space.max_lr,
        "the largest learning rate in the record (pass max_lr=4 to exceed it)",
    )
    if fast:
        notes.append(
            f"In stage {_listed(fast)}, the learning rate is capped at {space.max_lr:.4g} times "
            f"the base learning rate by {why}."
        )
    if large:
        cause = "the budget" if request.memory_limit is None else "the memory limit or the budget"
        notes.append(
            f"In stage {_listed(large)}, the batch size is capped at {request.largest:,} samples "
            f"by {cause}."
        )
    return notes


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
