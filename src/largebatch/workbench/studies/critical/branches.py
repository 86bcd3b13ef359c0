"""Find the critical batch size by training branches of one run with larger batches.

At several points of a run with the base batch size B, branches continue the run with the batch size
k * B for k = 2, 4, 8, ... Each branch trains on the same number of samples, the window. The
learning rate of a branch is multiplied by sqrt(k) for Adam-like optimizers and by k for SGD. The
critical batch size at a point is the largest k * B whose loss exceeds the loss of the base run (k =
1) by at most a tolerance. The loss is smoothed: it is the mean over the last quarter of the window.

Branches, window, sqrt(k), smoothing and tolerance are taken from Merrill et al., 2025, arXiv
2505.23971. Four details are this library's own choice: the factor k for SGD, the form of the
smoothing, the tolerance as a fraction of the base loss, and the confidence interval over seeds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NotEnough
from largebatch.analysis.student import mean_of
from largebatch.core.rule import Rule, chain
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.rules import LinearScaling, Schedule, SqrtScaling
from largebatch.workbench.studies.critical.grid import critical_on_grid, mean_excess
from largebatch.workbench.studies.critical.settings import Settings, Watcher
from largebatch.workbench.studies.critical.study import Study, StudyRun
from largebatch.workbench.studies.critical.values import Answer, CriticalBatch, Trial
from largebatch.workbench.workloads import Workload

LEAST_STEPS = 8
"""Smallest number of optimizer steps with the largest batch in one window.

In a window with fewer steps, the optimizer's running averages would still come mostly from the base
batch.
"""

QUARTER, JUDGEMENTS = 4, 8
"""The loss is averaged over the last 1 / QUARTER of a window, at JUDGEMENTS evenly spaced points.
"""

MOST = 6
"""Largest default number of doublings of the base batch size."""

ASSUMES = (
    "the critical batch size is the largest tested batch size whose validation loss exceeds that "
    "of the base run by at most {percent} %. The loss is averaged over the last quarter of the "
    "{window} samples after the branch point. The learning rate is multiplied by {scaling}. The "
    "method assumes that a larger batch that loses nothing within the window loses nothing later"
)


def scaling_of(workload: Workload) -> tuple[Rule, str]:
    """Return the learning-rate rule that suits the workload's optimizer, and its factor as text."""
    _, optimizer = workload.fresh(seed=0)
    name = type(optimizer).__name__
    if PreconditionedNorms().divides(optimizer):
        return SqrtScaling(), f"sqrt(k) because the optimizer is Adam-like ({name})"
    return LinearScaling(), f"k because the optimizer is SGD-like ({name})"


def branch_rule(workload: Workload) -> Rule:
    """Return the rule of a branch: the learning-rate scaling, then the workload's schedule."""
    scaling, _ = scaling_of(workload)
    if workload.schedule is None:
        return chain(scaling)
    return chain(scaling, Schedule(factor=workload.schedule))


def window_of(*, base: int, budget: int, points: int, doublings: int | None) -> tuple[int, int]:
    """Return the number of samples in a window and the number of doublings of the base batch size.

    A window consists of whole steps of the largest batch.

    >>> window_of(base=16, budget=21_424, points=5, doublings=None)
    (4096, 5)

    Args:
        base: Base batch size B, in samples.
        budget: Number of samples of the base run.
        points: Number of points at which branches start.
        doublings: Number of doublings. The default is the largest number for which the window has
            `LEAST_STEPS` steps of the largest batch, and at most `MOST`.

    Raises:
        ValueError: The window has fewer than `LEAST_STEPS` steps of the largest batch.
    """
    room = budget // points // base // LEAST_STEPS  # upper bound of k for the largest batch
    fitting = room.bit_length() - 1
    wanted = min(fitting, MOST) if doublings is None else doublings
    if wanted < 1 or wanted > fitting:
        k = 2 ** max(wanted, 1)
        need = LEAST_STEPS * k * base
        raise ValueError(
            f"A branch needs at least {LEAST_STEPS} steps of the largest batch size, {k * base:,}, "
            f"which are {need:,} samples. A run of {budget:,} samples has only "
            f"{budget // points:,} samples for each of the {points} points. Pass "
            f"budget='{need * points}', fewer doublings or fewer points."
        )
    largest = base * 2**wanted
    return budget // points // largest * largest, wanted


def branches(study: Study, settings: Settings, watcher: Watcher | None) -> Answer:
    """Train the base runs and their branches, and return the critical batch size at each point."""
    began, samples, steps = time.perf_counter(), study.spent.samples, study.spent.steps
    base = study.base
    window, doublings = window_of(
        base=base, budget=study.budget, points=settings.points, doublings=settings.doublings
    )
    sizes = [base * 2**i for i in range(1, doublings + 1)]
    starts = [study.budget * i // settings.points // base * base for i in range(settings.points)]
    count = watcher.counting(f"branches of {study.workload.name}") if watcher else None
    losses = _losses(
        study,
        seeds=range(settings.seed, settings.seed + settings.seeds),
        starts=starts,
        sizes=sizes,
        window=window,
        count=count,
    )
    trials = tuple(
        Trial(
            start=start,
            batch_size=batch_size,
            base_losses=tuple(losses[start, base]),
            losses=tuple(losses[start, batch_size]),
        )
        for start in starts
        for batch_size in sizes
    )
    return Answer(
        method="branches",
        findings=tuple(
            critical_batch_of(
                [trial for trial in trials if trial.start == start],
                study=study,
                window=window,
                tolerance=settings.tolerance,
            )
            for start in starts
        ),
        assumes=ASSUMES.format(
            window=f"{window:,}",
            percent=f"{100 * settings.tolerance:.3g}",
            scaling=scaling_of(study.workload)[1],
        ),
        samples=study.spent.samples - samples,
        steps=study.spent.steps - steps,
        seconds=time.perf_counter() - began,
        trials=trials,
    )


def _losses(
    study: Study,
    *,
    seeds: Sequence[int],
    starts: Sequence[int],
    sizes: Sequence[int],
    window: int,
    count: Callable[[int, int], None] | None,
) -> dict[tuple[int, int], list[float]]:
    """Return the loss of each seed for every pair (start in samples, batch size).

    The loss of the base batch size is the loss of the base run.
    """
    losses: dict[tuple[int, int], list[float]] = {}
    total, done = len(seeds) * len(starts) * (len(sizes) + 1), 0
    for seed in seeds:
        run = study.run(rule=branch_rule(study.workload), batch_size=study.base, seed=seed)
        for start in starts:
            run.go(start)
            for batch_size in (*sizes, study.base):
                twin = run if batch_size == study.base else run.branch(batch_size)
                loss = smoothed_loss(twin, start, window)
                losses.setdefault((start, batch_size), []).append(loss)
                done += 1
                if count is not None:
                    count(done, total)
    return losses


def smoothed_loss(run: StudyRun, start: int, window: int) -> float:
    """Train a branch through its window and return the mean loss over the window's last quarter.

    The result is infinite if the branch diverges.
    """
    losses, there = [], -1
    for part in range(1, JUDGEMENTS + 1):
        run.go(start + window - window * (JUDGEMENTS - part) // (QUARTER * JUDGEMENTS))
        if run.control.samples > there or run.diverged:
            losses.append(run.loss)
        there = run.control.samples
    return math.fsum(losses) / len(losses)


def critical_batch_of(
    trials: Sequence[Trial], *, study: Study, window: int, tolerance: float
) -> CriticalBatch:
    """Return the critical batch size that the branches from one point show.

    Args:
        trials: Branches that start at the point, sorted by batch size.
        study: Study that made the branches.
        window: Number of samples that each branch trained on.
        tolerance: Largest accepted increase of the loss, as a fraction of the base run's loss.
    """
    start = trials[0].start / study.budget
    stop = (trials[0].start + window) / study.budget
    found: Range | NotEnough
    if not all(0.0 < loss < math.inf for loss in trials[0].base_losses):
        found = NotEnough(
            reason="the loss of the base run is not positive and finite",
            needed="a lower base learning rate, or a loss function with values above 0",
        )
    else:
        found = critical_on_grid(
            study.base,
            [trial.batch_size for trial in trials],
            [mean_excess(trial.excess) for trial in trials],
            tolerance=tolerance,
        )
    return CriticalBatch(
        where=f"{start:.0%} to {stop:.0%}",
        start=start,
        stop=stop,
        loss=mean_of(trials[0].base_losses).value,
        batch=found if isinstance(found, Range) else None,
        missing=found if isinstance(found, NotEnough) else None,
    )
