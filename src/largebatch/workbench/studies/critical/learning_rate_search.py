"""Search the learning rate with which one batch takes the fewest steps to a target loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from largebatch.analysis.student import mean_of
from largebatch.core.rule import chain
from largebatch.workbench.studies.critical.settings import Settings
from largebatch.workbench.studies.critical.study import Study
from largebatch.workbench.studies.critical.values import StepsToTarget

SPACING = 1.03
"""Ratio of the steps at which the loss is judged, so that steps are known to 3 % at every batch."""

MOST_SAMPLES = 4
"""Budgets that one run may take, as larger batches need more samples."""

PATIENCE = 2.0
"""Times the steps of the best rate so far, or of the batch before: then a run is given up."""

MOST_RATES = 12
"""Of one batch."""


def steps_to(
    study: Study, *, batch_size: int, lr: float, seed: int, target: float, most: int
) -> tuple[int | None, float]:
    """(steps at which the loss is first seen at or below the target, the lowest loss seen); None
    where `most` steps, MOST_SAMPLES budgets or a divergence come first."""
    run = study.run(rule=chain(), batch_size=batch_size, seed=seed, lr=lr)
    lowest, due, reached = math.inf, 1, False
    most_samples = min(most * batch_size, MOST_SAMPLES * study.budget)

    def until() -> bool:
        nonlocal lowest, due, reached
        taken = run.control.optimizer_steps
        if taken < due and run.control.samples < most_samples:
            return False
        due = max(taken + 1, math.ceil(taken * SPACING))
        loss = run.loss
        lowest, reached = min(lowest, loss), loss <= target
        return reached or math.isinf(loss)

    run.go(most_samples, budget=most_samples, until=until)
    return (run.control.optimizer_steps if reached else None), lowest


def search_learning_rate(
    measure: Callable[[float], StepsToTarget], start: float
) -> tuple[StepsToTarget, ...]:
    """Try learning rates by factors of 2 from `start` until one is better than both neighbours.

    The search goes up, or else down, and the best rate is marked. No rate is marked if MOST_RATES
    were measured before: a best rate that was not found would let steps fall from batch to batch
    for no other reason.

    A rate is better where more seeds reach the target, then where they need fewer steps.

    >>> def measure(lr: float) -> StepsToTarget:
    ...     steps = (round(8 * abs(lr - 4)) + 9,)
    ...     return StepsToTarget(batch_size=16, lr=lr, steps=steps, lowest=0.1)
    >>> found = search_learning_rate(measure, 1.0)
    >>> [(run.lr, run.best) for run in found]
    [(1.0, False), (2.0, False), (4.0, True), (8.0, False)]

    Args:
        measure: rate -> its runs.
        start: the first rate.
    """
    found = [measure(start)]
    best = found[0]
    for factor in (2.0, 0.5):
        while len(found) < MOST_RATES:
            found.append(measure(best.lr * factor))
            if not better(found[-1], best):
                break
            best = found[-1]
        if best.lr > start:
            break
    between = best is not found[-1]
    return tuple(replace(run, best=run is best and between and bool(run.known)) for run in found)


def better(one: StepsToTarget, other: StepsToTarget) -> bool:
    """Return whether a learning rate takes its batch to the target faster than another one."""
    if len(one.known) != len(other.known):
        return len(one.known) > len(other.known)
    return bool(one.known) and mean_of(one.known).value < mean_of(other.known).value


@dataclass(slots=True)
class Rates:
    """All seeds of one batch at a rate; mutable: remembers how fast the fastest rate was.

    Args:
        study, settings, target, batch_size: as in `steps_to`.
        most: steps after which a run is given up.
    """

    study: Study
    settings: Settings
    target: float
    batch_size: int
    most: int
    reached: bool = False

    def __call__(self, lr: float) -> StepsToTarget:
        steps: list[int | None] = []
        lowest = math.inf
        for seed in range(self.settings.seed, self.settings.seed + self.settings.seeds):
            taken, low = steps_to(
                self.study,
                batch_size=self.batch_size,
                lr=lr,
                seed=seed,
                target=self.target,
                most=self.most,
            )
            steps.append(taken)
            lowest = min(lowest, low)
            if taken is None and self.reached:  # a rate that brings every seed there is known
                break
        known = [taken for taken in steps if taken is not None]
        if len(known) == len(steps):
            self.most = min(self.most, math.ceil(PATIENCE * max(known)))
            self.reached = True
        return StepsToTarget(batch_size=self.batch_size, lr=lr, steps=tuple(steps), lowest=lowest)
