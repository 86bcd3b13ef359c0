"""Search for the best schedule in stages.

    least loss:       min loss at the budget
    cheapest:         min log cost + weight * log loss,   weight such that loss = target
    smallest budget:  the smallest budget whose lowest loss is the target

The variables of the search are the logarithms of the batch size, learning rate and length of each
stage. The cost is the number of steps or seconds. The weight and the budget are found by bisection.
A search with a weight finds only schedules on the convex part of the boundary between cost and
loss. The search uses no batch below the base batch size, because a batch below the base batch size
saves few samples and needs more steps than the base batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from largebatch.workbench.planner.model import QuadraticModel, Stage
from largebatch.workbench.quadratic.minimise import coordinate_search
from largebatch.workbench.quadratic.spectrum import Array

SMALLEST_LR = 1e-5
"""Smallest factor on the base learning rate."""

BISECTIONS = 12
"""Number of bisection steps for a weight or a budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpace:
    """Describe the set of schedules to search.

    Args:
        model: Quadratic that predicts the loss.
        budget: Number of training samples of the run.
        smallest, largest: Smallest and largest batch size, in samples.
        max_lr: Largest factor on the base learning rate.
        stages: Number of stages of a schedule.
    """

    model: QuadraticModel
    budget: int
    smallest: int
    largest: int
    max_lr: float
    stages: int

    @property
    def start(self) -> Array:
        """Return the start point: the smallest batch size, with lr halved from stage to stage."""
        m = self.stages
        lrs = np.maximum(-math.log(2.0) * np.arange(m), math.log(SMALLEST_LR))
        return np.concatenate([np.full(m, math.log(self.smallest)), lrs, np.zeros(m)])

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Return the lower and the upper bound of each coordinate."""
        m = self.stages
        low = [math.log(self.smallest)] * m + [math.log(SMALLEST_LR)] * m + [-9.0] * m
        high = [math.log(self.largest)] * m + [math.log(self.max_lr)] * m + [3.0] * m
        return np.array(low), np.array(high)

    def stages_of(self, x: Array) -> list[Stage]:
        """Return the stages that a point describes, not rounded to whole samples."""
        m = self.stages
        lengths = np.exp(x[2 * m : 3 * m])
        samples = self.budget * lengths / lengths.sum()
        batches, rates = np.exp(x[:m]), np.exp(x[m : 2 * m])
        return [
            (float(b), float(f), float(n / b))
            for b, f, n in zip(batches, rates, samples, strict=True)
        ]


def least_loss(space: ScheduleSpace, start: Array | None = None) -> tuple[Array, float]:
    """Return the point with the lowest loss found at the budget, and the loss at the point.

    Args:
        space: Set of schedules to search.
        start: Point at which the search begins; None for `ScheduleSpace.start`.
    """
    low, high = space.bounds
    x, value = coordinate_search(
        lambda x: _log(space.model.final_loss(space.stages_of(x))),
        np.clip(space.start if start is None else start, low, high),
        low=low,
        high=high,
    )
    return x, math.exp(min(value, 700.0))


def smallest_budget(
    space: ScheduleSpace, *, target: float, start: Array
) -> tuple[ScheduleSpace, Array]:
    """Return the smallest budget found that reaches the target loss, as a space and its best point.

    Args:
        space: Set of schedules with the whole budget.
        target: Target loss, which the schedule at `start` reaches.
        start: Point at which the search begins.
    """
    short, long = math.log(space.smallest * space.stages), math.log(space.budget)
    best = space, start
    for _ in range(BISECTIONS):
        middle = 0.5 * (short + long)
        inner = replace(
            space,
            budget=int(math.exp(middle)),
            largest=max(min(space.largest, int(math.exp(middle)) // space.stages), space.smallest),
        )
        x, loss = least_loss(inner, best[1])
        if loss <= target:
            long, best = middle, (inner, x)
        else:
            short = middle
    return best


def cheapest(
    space: ScheduleSpace, *, price: Callable[[list[Stage]], float], target: float, start: Array
) -> Array:
    """Return the point of the cheapest schedule found with a loss of at most the target.

    Args:
        space: Set of schedules to search.
        price: Function that returns the cost of a list of stages, above 0.
        target: Target loss, which the schedule at `start` reaches.
        start: Point at which the search begins.
    """
    low, high = space.bounds
    best, least = start, price(space.stages_of(start))
    x = start
    light, heavy = math.log(0.05), math.log(3000.0)
    for round_ in range(BISECTIONS):
        weight = math.exp(0.5 * (light + heavy))

        def cost(at: Array, weight: float = weight) -> float:
            stages = space.stages_of(at)
            return math.log(price(stages)) + weight * _log(space.model.final_loss(stages))

        x, _ = coordinate_search(
            cost, x, low=low, high=high, step=0.7 if round_ < 2 else 0.35, sweeps=25
        )
        stages = space.stages_of(x)
        if space.model.final_loss(stages) > target:
            light = math.log(weight)
            continue
        heavy = math.log(weight)
        if price(stages) < least:
            best, least = x, price(stages)
    return best


def _log(loss: float) -> float:
    return math.log(loss) if 0.0 < loss < math.inf else 1e6
