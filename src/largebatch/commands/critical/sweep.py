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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NotEnough
from largebatch.analysis.student import mean_of
from largebatch.commands.critical.lab import Lab
from largebatch.commands.critical.settings import Settings, Watcher
from largebatch.commands.critical.values import Answer, Finding, Reached
from largebatch.core.rule import chain
from largebatch.theory import StepsFit, fit_steps
from largebatch.workloads.data import size

DOUBLINGS = 5
"""Where the user names none; less where half of the data set is smaller."""

SHARE = 0.25
"""Of the budget, at which the base batch's loss is the target where none is given."""

SPACING = 1.03
"""Ratio of the steps at which the loss is judged, so that steps are known to 3 % at every batch."""

MOST_SAMPLES = 4
"""Budgets that one run may take, as larger batches need more samples."""

PATIENCE = 2.0
"""Times the steps of the best rate so far, or of the batch before: then a run is given up."""

MOST_RATES = 6
"""Of one batch."""


def doublings_of(lab: Lab, settings: Settings) -> int:
    """Of the base batch: as asked, or as many as half of the data set allows, two at least."""
    if settings.doublings is not None:
        return settings.doublings
    room = size(lab.data.train) // 2 // lab.base
    return min(DOUBLINGS, max(room.bit_length() - 1, 2))


def rough_samples(lab: Lab, settings: Settings) -> int:
    """What a sweep trains on, to two digits: 3 rates of each batch, twice the target's samples."""
    runs = 3 * settings.seeds * (doublings_of(lab, settings) + 1)
    return int(float(f"{2 * SHARE * lab.budget * runs:.2g}"))


def sweep(lab: Lab, settings: Settings, watcher: Watcher | None) -> Answer:
    """Finds the target, then each batch's best rate, then the curves."""
    began, samples, steps = time.perf_counter(), lab.spent.samples, lab.spent.steps
    given = settings.target
    target = _target(lab, settings) if given is None else given
    sizes = [lab.base * 2**i for i in range(doublings_of(lab, settings) + 1)]
    runs, notes = _all_sizes(lab, settings, target, sizes, watcher)
    return Answer(
        method="sweep",
        findings=findings_of(runs, target=target),
        assumes=(
            f"steps to a validation loss of {target:.4g}"
            + (f", the base batch's at {SHARE:.0%} of the run" if given is None else "")
            + ", at each batch's best constant rate. McCandlish: the batch with twice the fewest "
            "steps and samples; Iiduka: the one with the fewest samples; each takes its curve for "
            "granted"
        ),
        samples=lab.spent.samples - samples,
        steps=lab.spent.steps - steps,
        seconds=time.perf_counter() - began,
        notes=notes,
        runs=runs,
    )


def findings_of(runs: Sequence[Reached], *, target: float) -> tuple[Finding, ...]:
    """The curves through the best runs of each batch.

    Args:
        runs: of all batches and rates.
        target: the loss.
    """
    pairs = [(run.batch_size, steps) for run in runs if run.best for steps in run.known]
    where = f"to loss {target:.4g}"
    if not pairs:
        lowest = min(run.lowest for run in runs)
        missing = NotEnough(
            reason=f"no run reached the loss {target:.4g}; the lowest was {lowest:.4g}",
            needed=f"--target {_above(lowest):.4g} or more, or a longer --budget",
        )
        return (Finding(where=where, loss=target, missing=missing),)
    fits = fit_steps([batch for batch, _ in pairs], [steps for _, steps in pairs])
    return tuple(
        _finding(fit, where=f"{where}, {family}", loss=target)
        for family, fit in (("McCandlish", fits.mccandlish), ("Iiduka", fits.iiduka))
    )


def steps_to(
    lab: Lab, *, batch_size: int, lr: float, seed: int, target: float, most: int
) -> tuple[int | None, float]:
    """(steps at which the loss is first seen at or below the target, the lowest loss seen); None
    where `most` steps, MOST_SAMPLES budgets or a divergence come first."""
    run = lab.run(rule=chain(), batch_size=batch_size, seed=seed, lr=lr)
    lowest, due, reached = math.inf, 1, False
    most_samples = min(most * batch_size, MOST_SAMPLES * lab.budget)

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


def climb(measure: Callable[[float], Reached], start: float) -> tuple[Reached, ...]:
    """Rates by factors of 2 from `start`, up and else down, until one is better than both
    neighbours, or MOST_RATES are measured; the best is marked.

    A rate is better where more seeds reach the target, then where they need fewer steps.

    >>> def measure(lr: float) -> Reached:
    ...     return Reached(batch_size=16, lr=lr, steps=(round(8 * abs(lr - 4)) + 9,), lowest=0.1)
    >>> [(run.lr, run.best) for run in climb(measure, 1.0)]
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
    return tuple(replace(run, best=run is best and bool(run.known)) for run in found)


def better(one: Reached, other: Reached) -> bool:
    """Whether a rate takes its batch to the target faster."""
    if len(one.known) != len(other.known):
        return len(one.known) > len(other.known)
    return bool(one.known) and mean_of(one.known).value < mean_of(other.known).value


def _target(lab: Lab, settings: Settings) -> float:
    """Mean over seeds of the base batch's loss at its rate after a share of the budget."""
    losses = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        run = lab.run(rule=chain(), batch_size=lab.base, seed=seed)
        run.go(max(round(SHARE * lab.budget), lab.base))
        losses.append(run.loss)
    return mean_of(losses).value


def _all_sizes(
    lab: Lab, settings: Settings, target: float, sizes: Sequence[int], watcher: Watcher | None
) -> tuple[tuple[Reached, ...], tuple[str, ...]]:
    """The runs of each batch, and what was left out."""
    found: list[Reached] = []
    notes: list[str] = []
    rate, most = lab.workload.base_lr, max(lab.budget // lab.base, 1)
    count = watcher.counting(f"sweep of {lab.workload.name}") if watcher else None
    for index, batch_size in enumerate(sizes):
        here = climb(_Rates(lab, settings, target, batch_size, most), rate)
        found += here
        if count is not None:
            count(index + 1, len(sizes))
        best = next((run for run in here if run.best), None)
        if best is None:
            left = sizes[index:]
            notes.append(
                f"left out: {_listed(left)} samples; no rate reached the loss with a batch of "
                f"{batch_size:,} within {MOST_SAMPLES} times the run's samples and {PATIENCE:g} "
                "times the steps of the batch before"
            )
            break
        if len(best.known) < settings.seeds:
            notes.append(
                f"left out: {len(best.steps) - len(best.known)} of {len(best.steps)} runs with a "
                f"batch of {batch_size:,}, which did not reach the loss"
            )
        rate, most = best.lr, math.ceil(PATIENCE * max(best.known))
    return tuple(found), tuple(notes)


@dataclass(slots=True)
class _Rates:
    """All seeds of one batch at a rate; mutable: remembers how fast the fastest rate was.

    Args:
        lab, settings, target, batch_size: as in `steps_to`.
        most: steps after which a run is given up.
    """

    lab: Lab
    settings: Settings
    target: float
    batch_size: int
    most: int
    reached: bool = False

    def __call__(self, lr: float) -> Reached:
        steps: list[int | None] = []
        lowest = math.inf
        for seed in range(self.settings.seed, self.settings.seed + self.settings.seeds):
            taken, low = steps_to(
                self.lab,
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
        return Reached(batch_size=self.batch_size, lr=lr, steps=tuple(steps), lowest=lowest)


def _finding(fit: StepsFit | NotEnough, *, where: str, loss: float) -> Finding:
    if isinstance(fit, NotEnough):
        return Finding(where=where, loss=loss, missing=fit)
    batch = Range(value=fit.critical_batch_size, low=fit.low, high=fit.high)
    return Finding(where=where, loss=loss, batch=batch)


def _above(loss: float) -> float:
    """A loss of two digits that surely is not below this one."""
    return loss if not math.isfinite(loss) else float(f"{1.05 * loss:.2g}")


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(f"{batch_size:,}" for batch_size in sizes)
