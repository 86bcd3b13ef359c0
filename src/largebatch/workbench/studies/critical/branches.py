"""The critical batch by branches: from one checkpoint, the largest batch that loses nothing.

From a point of the base run, branches go on with k = 2, 4, 8, ... times the batch B over a window
of equally many samples, the rate times sqrt(k) for Adam-like optimizers and times k for SGD. The
critical batch there is the largest k B whose loss stays within a tolerance of the base branch's,
k = 1, which is the run itself. The loss is smoothed: the mean over the window's last quarter.

Merrill et al., 2025, arXiv 2505.23971, for branches, window, sqrt(k), smoothing and tolerance. The
factor k for SGD, the form of smoothing, the tolerance as a share and the interval over seeds are
this library's.
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
"""Of the largest batch in a window: fewer are mostly the optimizer's memory of the base batch."""

QUARTER, JUDGEMENTS = 4, 8
"""The last part of a window over which the loss is averaged, and at how many points of it."""

MOST = 6
"""Doublings where the user names none."""

ASSUMES = (
    "the largest batch whose validation loss, averaged over the last quarter of the {window} "
    "samples after the fork, exceeds the base branch's by {percent} % of it at most; the rate "
    "{scaling}. What a window does not show is taken not to show later; in units of the grid"
)


def scaling_of(workload: Workload) -> tuple[Rule, str]:
    """Return the rule of the learning rate that suits the optimizer, and its description."""
    _, optimizer = workload.fresh(seed=0)
    name = type(optimizer).__name__
    if PreconditionedNorms().divides(optimizer):
        return SqrtScaling(), f"times sqrt(k), as for Adam ({name})"
    return LinearScaling(), f"times k, as for SGD ({name})"


def branch_rule(workload: Workload) -> Rule:
    """Return the rule of a branch: the scaled learning rate, and the workload's schedule."""
    scaling, _ = scaling_of(workload)
    if workload.schedule is None:
        return chain(scaling)
    return chain(scaling, Schedule(factor=workload.schedule))


def window_of(*, base: int, budget: int, points: int, doublings: int | None) -> tuple[int, int]:
    """Return (samples of a window, doublings); a window is whole steps of the largest batch.

    >>> window_of(base=16, budget=21_424, points=5, doublings=None)
    (4096, 5)

    Args:
        base: B, in samples.
        budget: samples of the base run.
        points: at which branches begin.
        doublings: None for as many as fit, MOST at most.

    Raises:
        ValueError: the window holds fewer than LEAST_STEPS steps of the largest batch.
    """
    room = budget // points // base // LEAST_STEPS  # k of the largest batch, at most
    fitting = room.bit_length() - 1
    wanted = min(fitting, MOST) if doublings is None else doublings
    if wanted < 1 or wanted > fitting:
        k = 2 ** max(wanted, 1)
        need = LEAST_STEPS * k * base
        raise ValueError(
            f"A branch needs {LEAST_STEPS} steps of the largest batch, {k} x {base}, that is "
            f"{need:,} samples, and a run of {budget:,} samples has {budget // points:,} for each "
            f"of {points} points. Take a longer run, fewer doublings or fewer points: "
            f"--budget {need * points}"
        )
    largest = base * 2**wanted
    return budget // points // largest * largest, wanted


def branches(study: Study, settings: Settings, watcher: Watcher | None) -> Answer:
    """Train the base runs, and from each point of them the branches."""
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
    """Return (start, batch size) -> the loss of each seed; the base batch is the run itself."""
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
    """Train a branch through its window and return the mean loss over the last quarter of it.

    The loss is infinite if the branch diverges.
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
    """Return the critical batch that the branches from one point show.

    Args:
        trials: of that point, the batches rising.
        study: of the runs.
        window: in samples.
        tolerance: as in `critical_on_grid`.
    """
    start = trials[0].start / study.budget
    stop = (trials[0].start + window) / study.budget
    found: Range | NotEnough
    if not all(0.0 < loss < math.inf for loss in trials[0].base_losses):
        found = NotEnough(
            reason="the base run has no positive finite loss to compare with",
            needed="a lower base rate, or a loss that is above 0",
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
