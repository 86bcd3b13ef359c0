"""The critical batch by a sweep: steps to a target loss at each batch with its best rate.

    McCandlish   T = T_min (1 + b* / b)             Iiduka   T = T_min / (1 - b* / (2 b))

are laid through the pairs (batch, steps) of all seeds by `largebatch.theory.fit_steps`. Rates are
constant. Each batch climbs from the best rate of the batch before it by factors of 2 until neither
half nor twice the rate takes fewer steps.

The families are those of `largebatch.theory.fits`; how the rates are searched is this library's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NotEnough
from largebatch.analysis.student import mean_of
from largebatch.core.rule import chain
from largebatch.theory import StepsFit, fit_steps
from largebatch.workbench.studies.critical.learning_rate_search import (
    MOST_SAMPLES,
    PATIENCE,
    Rates,
    search_learning_rate,
)
from largebatch.workbench.studies.critical.settings import Settings, Watcher
from largebatch.workbench.studies.critical.study import Study
from largebatch.workbench.studies.critical.values import Answer, CriticalBatch, StepsToTarget
from largebatch.workbench.workloads.data import size

DOUBLINGS = 5
"""Where the user names none; less where half of the data set is smaller."""

SHARE = 0.25
"""Of the budget, at which the base batch's loss is the target where none is given."""

LEAST_STEPS = 5
"""To the target: fewer are too coarse a number to lay a curve through."""


def doublings_of(study: Study, settings: Settings) -> int:
    """Return how often to double the base batch: as asked, or until half of the data set.

    It is doubled at least twice.
    """
    if settings.doublings is not None:
        return settings.doublings
    room = size(study.data.train) // 2 // study.base
    return min(DOUBLINGS, max(room.bit_length() - 1, 2))


def rough_samples(study: Study, settings: Settings) -> int:
    """Return the samples that a sweep trains on, to two digits.

    They are those of 3 learning rates for each batch, each with twice the target's samples.
    """
    runs = 3 * settings.seeds * (doublings_of(study, settings) + 1)
    return int(float(f"{2 * SHARE * study.budget * runs:.2g}"))


def sweep(study: Study, settings: Settings, watcher: Watcher | None) -> Answer:
    """Finds the target, then each batch's best rate, then the curves."""
    began, samples, steps = time.perf_counter(), study.spent.samples, study.spent.steps
    given = settings.target
    target = _target(study, settings) if given is None else given
    sizes = [study.base * 2**i for i in range(doublings_of(study, settings) + 1)]
    runs, notes = (
        _all_sizes(study, settings, target, sizes, watcher) if math.isfinite(target) else ((), ())
    )
    return Answer(
        method="sweep",
        findings=critical_batches_of(runs, target=target),
        assumes=(
            f"steps to a validation loss of {target:.4g}"
            + (f", the base batch's at {SHARE:.0%} of the run" if given is None else "")
            + ", at each batch's best constant rate. McCandlish: the batch with twice the fewest "
            "steps and samples; Iiduka: the one with the fewest samples; each takes its curve for "
            "granted"
        ),
        samples=study.spent.samples - samples,
        steps=study.spent.steps - steps,
        seconds=time.perf_counter() - began,
        notes=notes,
        runs=runs,
    )


def critical_batches_of(
    runs: Sequence[StepsToTarget], *, target: float
) -> tuple[CriticalBatch, ...]:
    """The curves through the best runs of each batch.

    Args:
        runs: of all batches and rates.
        target: the loss.
    """
    pairs = [(run.batch_size, steps) for run in runs if run.best for steps in run.known]
    where = f"to loss {target:.4g}"
    if not pairs:
        return (CriticalBatch(where=where, loss=target, missing=_unreached(runs, target)),)
    fits = fit_steps([batch for batch, _ in pairs], [steps for _, steps in pairs])
    return tuple(
        _critical_batch(fit, where=f"{where}, {family}", loss=target)
        for family, fit in (("McCandlish", fits.mccandlish), ("Iiduka", fits.iiduka))
    )


def _target(study: Study, settings: Settings) -> float:
    """Mean over seeds of the base batch's loss at its rate after a share of the budget."""
    losses = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        run = study.run(rule=chain(), batch_size=study.base, seed=seed)
        run.go(max(round(SHARE * study.budget), study.base))
        losses.append(run.loss)
    return mean_of(losses).value


def _all_sizes(
    study: Study, settings: Settings, target: float, sizes: Sequence[int], watcher: Watcher | None
) -> tuple[tuple[StepsToTarget, ...], tuple[str, ...]]:
    """The runs of each batch, and what was left out."""
    found: list[StepsToTarget] = []
    notes: list[str] = []
    rate, most = study.workload.base_lr, max(study.budget // study.base, 1)
    count = watcher.counting(f"sweep of {study.workload.name}") if watcher else None
    for index, batch_size in enumerate(sizes):
        here = search_learning_rate(Rates(study, settings, target, batch_size, most), rate)
        found += here
        if count is not None:
            count(index + 1, len(sizes))
        best = next((run for run in here if run.best), None)
        if best is None or mean_of(best.known).value < LEAST_STEPS:
            found = [replace(run, best=run.best and run.batch_size != batch_size) for run in found]
            notes.append(f"left out: {_listed(sizes[index:])} samples; {_why(here, batch_size)}")
            break
        if len(best.known) < settings.seeds:
            notes.append(
                f"left out: {len(best.steps) - len(best.known)} of {len(best.steps)} runs with a "
                f"batch of {batch_size:,}, which did not reach the loss"
            )
        rate, most = best.lr, math.ceil(PATIENCE * max(best.known))
    return tuple(found), tuple(notes)


def _critical_batch(fit: StepsFit | NotEnough, *, where: str, loss: float) -> CriticalBatch:
    if isinstance(fit, NotEnough):
        return CriticalBatch(where=where, loss=loss, missing=fit)
    batch = Range(value=fit.critical_batch_size, low=fit.low, high=fit.high)
    return CriticalBatch(where=where, loss=loss, batch=batch)


def _unreached(runs: Sequence[StepsToTarget], target: float) -> NotEnough:
    lowest = min((run.lowest for run in runs), default=math.inf)
    if math.isinf(lowest):
        return NotEnough(
            reason="the loss of the base batch is no finite number at its rate",
            needed="a lower base rate",
        )
    known = [steps for run in runs for steps in run.known]
    if known:
        return NotEnough(
            reason=f"the loss {target:.4g} is reached in {min(known)} steps by the base batch, or "
            "its best rate is far from the base rate",
            needed="a lower --target, or a base rate that is tuned",
        )
    return NotEnough(
        reason=f"no run reached the loss {target:.4g}; the lowest was {lowest:.4g}",
        needed="a higher --target, or a longer --budget",
    )


def _why(here: Sequence[StepsToTarget], batch_size: int) -> str:
    """What is wrong with the runs of the first batch that is left out."""
    known = [steps for run in here for steps in run.known]
    if not known:
        return (
            f"no rate reached the loss with a batch of {batch_size:,} within {MOST_SAMPLES} times "
            f"the run's samples and {PATIENCE:g} times the steps of the batch before"
        )
    if min(known) < LEAST_STEPS:
        return f"with a batch of {batch_size:,} the loss is reached in {min(known)} steps"
    return f"with a batch of {batch_size:,} every higher or lower rate was better"


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(f"{batch_size:,}" for batch_size in sizes)
