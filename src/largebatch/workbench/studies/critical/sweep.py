"""Find the critical batch size by a sweep: count the steps to a target loss at each batch size.

Every batch size b uses its own best learning rate, which is constant along the run. The function
`largebatch.theory.fit_steps` fits two curves to the pairs (batch size b, steps T) of all seeds:

    McCandlish   T = T_min * (1 + b* / b)           Iiduka   T = T_min / (1 - b* / (2 * b))

The search of the learning rate starts at the best learning rate of the previous batch size. The
search doubles or halves the learning rate until neither change lowers the number of steps. The
curves are described in `largebatch.theory.fits`; the search is this library's own choice.
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
"""Default number of doublings, unless the largest batch would exceed half of the data set."""

SHARE = 0.25
"""Fraction of the budget after which the loss of the base batch becomes the default target."""

LEAST_STEPS = 5
"""Smallest mean number of steps to the target; fewer steps are too few to fit a curve."""


def doublings_of(study: Study, settings: Settings) -> int:
    """Return the number of doublings of the base batch size.

    By default, the largest batch has at most half of the samples of the data set, and the batch
    size is doubled at least twice and at most `DOUBLINGS` times.
    """
    if settings.doublings is not None:
        return settings.doublings
    room = size(study.data.train) // 2 // study.base
    return min(DOUBLINGS, max(room.bit_length() - 1, 2))


def rough_samples(study: Study, settings: Settings) -> int:
    """Return an estimate of the samples that a sweep trains on, rounded to two digits.

    The estimate assumes 3 learning rates per batch size, and runs of twice as many samples as the
    base batch needs to reach the target.
    """
    runs = 3 * settings.seeds * (doublings_of(study, settings) + 1)
    return int(float(f"{2 * SHARE * study.budget * runs:.2g}"))


def sweep(study: Study, settings: Settings, watcher: Watcher | None) -> Answer:
    """Find the target loss, then the best learning rate of each batch size, then fit the curves."""
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
            f"the runs stop at a validation loss of {target:.4g}"
            + (f", which the base batch reaches at {SHARE:.0%} of the run" if given is None else "")
            + ". Each batch size uses its best constant learning rate. McCandlish's critical batch "
            "size needs twice the smallest number of steps and twice the smallest number of "
            "samples. Iiduka's critical batch size needs the fewest samples. Each result assumes "
            "that its own curve describes the runs"
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
    """Return the critical batch sizes of the curves that fit the best runs of each batch size.

    Args:
        runs: Runs of all batch sizes and learning rates.
        target: Validation loss at which the runs stopped.
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
    """Return the mean loss of the base batch after a fraction `SHARE` of the budget."""
    losses = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        run = study.run(rule=chain(), batch_size=study.base, seed=seed)
        run.go(max(round(SHARE * study.budget), study.base))
        losses.append(run.loss)
    return mean_of(losses).value


def _all_sizes(
    study: Study, settings: Settings, target: float, sizes: Sequence[int], watcher: Watcher | None
) -> tuple[tuple[StepsToTarget, ...], tuple[str, ...]]:
    """Train the runs of every batch size; return the runs and a note on each run left out."""
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
            notes.append(
                f"the batch sizes {_listed(sizes[index:])} are left out because "
                f"{_why(here, batch_size)}"
            )
            break
        if len(best.known) < settings.seeds:
            notes.append(
                f"{len(best.steps) - len(best.known)} of {len(best.steps)} runs with batch size "
                f"{batch_size:,} are left out because they did not reach the target loss"
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
            reason="the loss of the base batch is not finite at the base learning rate",
            needed="a lower base learning rate",
        )
    known = [steps for run in runs for steps in run.known]
    if known:
        return NotEnough(
            reason=f"the base batch reaches the target loss {target:.4g} in {min(known)} steps, or "
            "its best learning rate is far from the base learning rate",
            needed="a lower target loss, or a tuned base learning rate",
        )
    return NotEnough(
        reason=f"no run reached the target loss {target:.4g}; the lowest loss was {lowest:.4g}",
        needed="a higher target loss, or a larger budget",
    )


def _why(here: Sequence[StepsToTarget], batch_size: int) -> str:
    """Return the reason why a batch size and all larger batch sizes are left out."""
    known = [steps for run in here for steps in run.known]
    if not known:
        return (
            f"no learning rate reached the target loss at batch size {batch_size:,} within "
            f"{MOST_SAMPLES} times the samples of the base run and {PATIENCE:g} times the steps of "
            "the next smaller batch size"
        )
    if min(known) < LEAST_STEPS:
        return (
            f"batch size {batch_size:,} reaches the target loss in {min(known)} steps, but at "
            f"least {LEAST_STEPS} steps are needed"
        )
    return f"the search found no best learning rate for batch size {batch_size:,}"


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(f"{batch_size:,}" for batch_size in sizes)
