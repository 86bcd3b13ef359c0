"""A plan: the schedule that costs least among those whose forecast loss is near the best.

    least     = least loss found at the budget
    target    = (1 + within) least
    plan      = fewest steps or least time with loss <= target

Of samples the fewest are planned that reach the loss of the best usual schedule at the whole
budget. The usual ones, constant, cosine, Seesaw and the growth relation, are forecast beside the
plan; where one of them is better, it is the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from largebatch.core.rule import Rule
from largebatch.workbench.planner.baselines import Row, in_stages, pieces_of, row_of, usual
from largebatch.workbench.planner.model import COARSE, Model, model_of
from largebatch.workbench.planner.optimum import (
    Space,
    Stage,
    cheapest,
    fewest_samples,
    least_loss,
    loss_of,
)
from largebatch.workbench.planner.request import Wish
from largebatch.workbench.planner.search import Vector
from largebatch.workbench.planner.table import Table

ALONE = (
    "Forecasts from a noise scale alone do not rank schedules: their rank correlation with real "
    "runs was 0.35 to 0.93 (experiments/growth/rank.md). --record FILE takes a run."
)
FITTED = (
    "Forecasts from a record ranked ten schedules of no higher rate with correlations of 0.90 to "
    "0.95 with real runs, but not those of higher rates (experiments/growth/rank.md)."
)
"""What is known of the forecast's worth."""

MARGINS = (0.95, 0.8, 0.5, 0.2)
"""Parts of the margin on the loss that are tried; the rest is for what rounding costs."""

MULTIPLES = (1, 2, 4, 8, 16, 32)
"""Of the workers, in the table of what more of them bring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """What a number of workers brings: the plan for them, and its time beside the first row's."""

    workers: int
    steps: int
    seconds: float
    speed_up: float
    largest_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The schedule that was found, and what stands beside it.

    Args:
        name: of the row that is the plan.
        rule, table: the schedule.
        rows: forecasts, the plan's first.
        least_loss, target: see the module.
        workers: what more of them bring; () without a price.
        notes: bounds that are in force, and what the forecast is worth.
    """

    name: str
    rule: Rule
    table: Table
    rows: tuple[Row, ...]
    least_loss: float
    target: float
    workers: tuple[Workers, ...]
    notes: tuple[str, ...]


def plan(wish: Wish) -> Plan:
    """The best schedule found, beside the usual ones.

    Raises:
        ValueError: numbers that `Wish` or `model_of` refuses.
    """
    coarse, fine = _model(wish, COARSE), _model(wish, 2000)
    space = _space(wish, coarse)
    start, _ = least_loss(space)
    others = usual(
        budget=wish.budget,
        base_batch_size=wish.base_batch_size,
        largest=wish.largest,
        max_lr=space.max_lr,
        noise_scale=_late_noise_scale(wish, fine),
    )
    found = {"least loss": _rounded(wish, space, start)}
    forecasts = {
        name: row_of(name, *at, model=fine, price=wish.price, target=math.inf)
        for name, at in (found | others).items()
    }
    least = min(row.loss for row in forecasts.values())
    target = (1.0 + wish.within) * least
    if wish.minimise == "samples":
        target = min(forecasts[name].loss for name in others)
        if target < math.inf:
            space, start = fewest_samples(space, target=0.99 * target, start=start)
    else:
        start = _cheapest(wish, space, start, fine=fine, target=target)
    found["plan"] = _rounded(wish, space, start)
    forecasts["plan"] = row_of("plan", *found["plan"], model=fine, price=wish.price, target=target)
    least = min(row.loss for row in forecasts.values())
    rows = [replace(row, reaches=row.loss <= target * (1.0 + 1e-9)) for row in forecasts.values()]
    best = min((row for row in rows if row.reaches), key=lambda row: _cost(wish, row))
    rows.sort(key=lambda row: (row is not best, row.schedule == "plan"))
    rule, table = (found | others)[best.schedule]
    return Plan(
        name=best.schedule,
        rule=rule,
        table=table,
        rows=tuple(rows),
        least_loss=least,
        target=target,
        workers=tuple(_more_workers(wish, coarse)) if wish.price is not None else (),
        notes=(*_bounds(space, table, wish), ALONE if wish.recorded is None else FITTED),
    )


def _model(wish: Wish, bins: int) -> Model:
    return wish.recorded or model_of(
        wish.noise_scales,
        budget=wish.budget,
        base_batch_size=wish.base_batch_size,
        exponent=wish.exponent,
        bins=bins,
    )


def _space(wish: Wish, model: Model) -> Space:
    return Space(
        model=model,
        budget=wish.budget,
        smallest=wish.base_batch_size,
        largest=wish.largest,
        max_lr=min(model.max_lr, wish.max_lr or model.seen or math.inf),
        stages=wish.stages,
    )


def _late_noise_scale(wish: Wish, model: Model) -> float:
    """That of the last steps of a run with base batch and rate, at which Seesaw's growth ends."""
    steps = wish.budget // wish.base_batch_size
    return max(model.forecast([(wish.base_batch_size, 1.0, steps)]).noise_scale[-1], 1.0)


def _cheapest(wish: Wish, space: Space, start: Vector, *, fine: Model, target: float) -> Vector:
    """The cheapest schedule that reaches the target in whole steps, too, or the start."""
    least = loss_of(space.model, space.stages_of(start))
    for part in MARGINS:
        within = (1.0 + part * wish.within) * least
        x = cheapest(space, price=_price(wish), target=within, start=start)
        rule, table = _rounded(wish, space, x)
        if fine.forecast(list(pieces_of(rule, table))).loss[-1] <= target:
            return x
    return start


def _price(wish: Wish) -> Callable[[list[Stage]], float]:
    def total(stages: list[Stage]) -> float:
        steps = sum(k for _, _, k in stages)
        if wish.minimise == "steps" or wish.price is None:
            return steps
        samples = sum(b * k for b, _, k in stages)
        return wish.price.total(steps=steps, samples=samples)

    return total


def _cost(wish: Wish, row: Row) -> float:
    if wish.minimise == "time" and row.seconds is not None:
        return row.seconds
    return row.samples if wish.minimise == "samples" else row.steps


def _rounded(wish: Wish, space: Space, x: Vector) -> tuple[Rule, Table]:
    return in_stages(space.stages_of(x), base_batch_size=wish.base_batch_size)


def _more_workers(wish: Wish, model: Model) -> list[Workers]:
    assert wish.price is not None
    rows: list[Workers] = []
    for times in MULTIPLES:
        workers = times * wish.workers
        many = replace(
            wish, minimise="time", workers=workers, price=replace(wish.price, workers=workers)
        )
        space = _space(many, model)
        start, least = least_loss(space)
        target = (1.0 + wish.within) * least
        x = _cheapest(many, space, start, fine=model, target=target)
        _, table = _rounded(many, space, x)
        assert many.price is not None
        seconds = many.price.total(steps=table.steps, samples=table.budget)
        rows.append(
            Workers(
                workers=workers,
                steps=table.steps,
                seconds=seconds,
                speed_up=rows[0].seconds / seconds if rows else 1.0,
                largest_batch=max(row.batch_size for row in table.rows),
            )
        )
    return rows


def _bounds(space: Space, table: Table, wish: Wish) -> list[str]:
    notes = []
    fast = [m for m, row in enumerate(table.rows, 1) if row.lr >= 0.999 * space.max_lr]
    large = [m for m, row in enumerate(table.rows, 1) if row.batch_size >= 0.999 * wish.largest]
    why = {wish.max_lr: "--max-lr", space.model.max_lr: "the model's stability"}.get(
        space.max_lr, "the largest rate in the record, which --max-lr sets aside,"
    )
    if fast:
        notes.append(
            f"The rate is capped at x{space.max_lr:.4g} by {why} in stage {_listed(fast)}."
        )
    if large:
        cause = "the budget" if wish.memory_limit is None else "memory or budget"
        notes.append(
            f"The batch is capped at {wish.largest:,} samples by {cause} in stage {_listed(large)}."
        )
    return notes


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
