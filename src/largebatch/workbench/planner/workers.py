"""Plan the fastest schedule for each of several numbers of workers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from largebatch.workbench.planner.model import QuadraticModel
from largebatch.workbench.planner.optimum import least_loss
from largebatch.workbench.planner.request import PlanRequest, Price
from largebatch.workbench.planner.search import cheapest_schedule, space_of

MULTIPLES = (1, 2, 4, 8, 16, 32)
"""Numbers of workers that are planned, as multiples of the requested number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUp:
    """Hold the plan for one number of workers.

    `speed_up` is the duration in the first row divided by the duration in this row.
    """

    workers: int
    steps: int
    seconds: float
    speed_up: float
    largest_batch: int


def speed_ups(request: PlanRequest, price: Price, *, model: QuadraticModel) -> tuple[SpeedUp, ...]:
    """Return the fastest plan for each number of workers, fewest workers first.

    Args:
        request: Run to be planned.
        price: Duration of a step with the requested number of workers.
        model: Quadratic that predicts the loss.
    """
    rows: list[SpeedUp] = []
    for times in MULTIPLES:
        workers = times * request.workers
        shared = replace(price, workers=workers)
        many = replace(request, minimise="time", workers=workers, price=shared)
        space = space_of(many, model)
        start, least = least_loss(space)
        target = (1.0 + request.within) * least
        table = cheapest_schedule(many, space, start, fine=model, target=target).table
        seconds = shared.total(steps=table.steps, samples=table.budget)
        rows.append(
            SpeedUp(
                workers=workers,
                steps=table.steps,
                seconds=seconds,
                speed_up=rows[0].seconds / seconds if rows else 1.0,
                largest_batch=max(row.batch_size for row in table.rows),
            )
        )
    return tuple(rows)
