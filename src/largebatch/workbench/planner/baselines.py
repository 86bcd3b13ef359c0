"""What a schedule is forecast to reach, and the usual ones that a plan stands beside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from largebatch import methods
from largebatch.core.rule import Rule, chain, names_within
from largebatch.rules import Growth
from largebatch.rules.stages import Stages
from largebatch.workbench.planner.clock_run import ahead, rate_at, runs, started
from largebatch.workbench.planner.model import Model
from largebatch.workbench.planner.named import schedule_named
from largebatch.workbench.planner.price import Price
from largebatch.workbench.planner.table import Table, table_of

PIECES = 96
"""Into which a rate that moves within stages is cut, over the whole run."""

POINTS = 24
"""Of a curve where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
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


def pieces_of(rule: Rule, table: Table) -> Iterator[tuple[float, float, float]]:
    """(batch, factor on the rate, steps) of parts with one rate each; that of the middle where it
    moves."""
    start = started(
        rule,
        budget=table.budget,
        base_batch_size=table.base_batch_size,
        batch_size=table.rows[0].batch_size,
    )
    smooth = names_within(rule) & {"Schedule", "WarmUp", "Legw"}
    most = max(2, math.ceil((PIECES if smooth else POINTS) / len(table.rows)))
    for first, last, _, _ in runs(start):
        steps = last.step - first.step
        count = min(steps, most)
        cuts = [steps * i // count for i in range(count + 1)]
        for low, high in pairwise(cuts):
            rate = rate_at(ahead(first, (low + high) // 2))
            yield float(first.batch_size), rate, float(high - low)


def row_of(
    name: str, rule: Rule, table: Table, *, model: Model, price: Price | None, target: float
) -> Row:
    """A schedule's forecast.

    Args:
        name: of the schedule.
        rule, table: of the schedule.
        model: whose loss it is.
        price: of a step, or None.
        target: a loss.
    """
    seen = model.forecast(list(pieces_of(rule, table)))
    steps, samples = table.steps, table.budget
    return Row(
        schedule=name,
        loss=seen.loss[-1],
        samples=samples,
        steps=steps,
        seconds=None if price is None else price.total(steps=steps, samples=samples),
        largest_batch=max(row.batch_size for row in table.rows),
        reaches=seen.loss[-1] <= target * (1.0 + 1e-9),
        curve=tuple(zip(seen.samples, seen.loss, strict=True)),
    )


def usual(
    *, budget: int, base_batch_size: int, largest: int, max_lr: float, noise_scale: float
) -> dict[str, tuple[Rule, Table]]:
    """Constant, cosine, Seesaw and the growth relation, within the same bounds as the plan."""
    most = largest / base_batch_size
    rules: dict[str, Rule] = {
        "constant": chain(),
        "cosine": schedule_named("cosine", base_batch_size=base_batch_size),
        "seesaw": schedule_named(
            "seesaw", base_batch_size=base_batch_size, noise_scale=noise_scale, most=largest
        ),
        "growth": methods.growth(most=max(most, 1.0), max_lr=max_lr),
    }
    return {
        name: (rule, table_of(rule, budget=budget, base_batch_size=base_batch_size))
        for name, rule in rules.items()
    }


def in_stages(
    stages: list[tuple[float, float, float]], *, base_batch_size: int
) -> tuple[Rule, Table]:
    """Stages in whole samples and whole steps, as a rule and its table, never beyond their samples.

    A stage that is shorter than a step of its batch is one step of its length, or a part of the
    next stage where that is below the base batch.

    Args:
        stages: (batch, factor on the rate, steps) of each, not rounded.
        base_batch_size: B0.
    """
    whole: list[tuple[int, float, int]] = []
    end, here = 0.0, 0
    for batch, factor, steps in stages:
        rate = float(f"{factor:.4g}")
        end += batch * steps
        left = math.floor(end - here + 1e-6)
        size = min(round(batch), left)
        if size < min(base_batch_size, round(batch)):
            continue
        count = left // size
        here += size * count
        if whole and whole[-1][:2] == (size, rate):
            count += whole.pop()[2]
        whole.append((size, rate, count))
    begins = [0]
    for size, _, count in whole:
        begins.append(begins[-1] + size * count)
    budget = begins.pop()
    rule = Growth(
        stages=Stages(
            batch=tuple([float(size) for size, *_ in whole]),
            lr=tuple([rate for _, rate, _ in whole]),
            of=1,
        ),
        at=tuple([begin / budget for begin in begins[1:]]),
    )
    return chain(rule), table_of(rule, budget=budget, base_batch_size=base_batch_size)
