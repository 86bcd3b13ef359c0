"""Search the learning rate that takes the fewest steps to a target loss at one batch size."""

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
"""Ratio of two successive step counts at which the loss is evaluated.

The number of steps to the target is therefore known to within 3 % at every batch size.
"""

MOST_SAMPLES = 4
"""Largest number of samples of one run, as a multiple of the budget of the base run.

A run with a large batch size needs more samples to reach the target than the base run.
"""

PATIENCE = 2.0
"""Factor that limits the number of steps of a run.

A run stops after PATIENCE times the number of steps of the best learning rate so far. For the first
runs of a batch size, the limit is PATIENCE times the number of steps of the previous batch size.
"""

MOST_RATES = 12
"""Largest number of learning rates that are tried for one batch size."""


def steps_to(
    study: Study, *, batch_size: int, lr: float, seed: int, target: float, most: int
) -> tuple[int | None, float]:
    """Return the number of steps until the loss reaches the target, and the lowest loss seen.

    The number of steps is None if, before reaching the target, the run takes `most` steps, uses
    `MOST_SAMPLES` times the samples of the base run, or diverges.
    """
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
    """Try learning rates by factors of 2 from `start` until one is better than its two neighbors.

    The search first raises the learning rate. If raising the learning rate does not help, the
    search lowers the learning rate. The best learning rate is marked as best, unless `MOST_RATES`
    learning rates were tried before the best one was found. A batch size without a marked learning
    rate is left out of the curves, because the number of steps would depend on the poor learning
    rate and not only on the batch size.

    A learning rate is better than another learning rate if more seeds reach the target, or if the
    same number of seeds reaches the target in fewer steps.

    >>> def measure(lr: float) -> StepsToTarget:
    ...     steps = (round(8 * abs(lr - 4)) + 9,)
    ...     return StepsToTarget(batch_size=16, lr=lr, steps=steps, lowest=0.1)
    >>> found = search_learning_rate(measure, 1.0)
    >>> [(run.lr, run.best) for run in found]
    [(1.0, False), (2.0, False), (4.0, True), (8.0, False)]

    Args:
        measure: Function that trains the runs of one learning rate and returns their steps.
        start: First learning rate.
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
    """Return whether the runs `one` reach the target better than the runs `other`.

    The runs with more seeds that reach the target are better. If the numbers of seeds are equal,
    the runs with fewer steps are better.
    """
    if len(one.known) != len(other.known):
        return len(one.known) > len(other.known)
    return bool(one.known) and mean_of(one.known).value < mean_of(other.known).value


@dataclass(slots=True)
class Rates:
    """Train all seeds of one batch size at a learning rate.

    Mutable: lowers the limit of steps whenever a learning rate reaches the target with all seeds.

    Args:
        study: Study that makes the runs.
        settings: Settings of the study, with its seeds.
        target: Validation loss to reach.
        batch_size: Number of samples per optimizer step.
        most: Number of optimizer steps after which a run is stopped.
        reached: Whether a learning rate has reached the target with all seeds.
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
            if taken is None and self.reached:  # a better learning rate is already known
                break
        known = [taken for taken in steps if taken is not None]
        if len(known) == len(steps):
            self.most = min(self.most, math.ceil(PATIENCE * max(known)))
            self.reached = True
        return StepsToTarget(batch_size=self.batch_size, lr=lr, steps=tuple(steps), lowest=lowest)
