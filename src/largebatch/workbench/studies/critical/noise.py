"""Measure the noise scale along one whole run at the base batch size.

    noise scale = variance of one sample's gradient / squared norm of the true gradient    [samples]

McCandlish et al., 2018, arXiv 1812.06162, call the noise scale B_simple. The estimator and its
confidence interval are in `largebatch.analysis.noise`.
"""

from __future__ import annotations

import time

import numpy as np

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NoiseEstimate, NotEnough, along
from largebatch.measure.random_state import accelerators_of, keep_random_state
from largebatch.studies.measured_steps import ProbeTarget, Trace, measure_steps
from largebatch.studies.noise_of_run import noise_of_series
from largebatch.workbench.studies.critical.settings import Settings, Watcher
from largebatch.workbench.studies.critical.study import Study
from largebatch.workbench.studies.critical.values import Answer, CriticalBatch

ASSUMES = (
    "the noise scale is the batch size at which the noise of {what} equals its squared norm. The "
    "theory assumes plain SGD and the same curvature in all directions"
)


def noise(study: Study, settings: Settings, watcher: Watcher | None) -> Answer:
    """Train one run at the base batch size and measure the gradient noise in every step."""
    began = time.perf_counter()
    steps = max(study.budget // study.base, 1)
    trace = _measured(study, settings, steps, watcher)
    series, losses = trace.series, trace.series_losses
    skipped = len(trace.losses) - len(series)
    whole, _, _ = noise_of_series(
        series, losses, base_batch_size=study.base, run_steps=steps, seed=settings.seed
    )
    findings = [
        _critical_batch(
            piece.noise,
            start=(piece.start + skipped) / steps,
            stop=(piece.stop + skipped) / steps,
            loss=float(np.mean(losses[piece.start : piece.stop])) if losses else None,
        )
        for piece in along(series, settings.points, seed=settings.seed)
    ]
    known = whole.estimate or whole.missing
    assert known is not None, "a result has either an estimate or the reason why there is none"
    findings.append(_critical_batch(known, start=None, stop=None, loss=None))
    study.spent.steps += len(trace.losses)
    study.spent.samples += len(trace.losses) * study.base
    what = "the preconditioned gradient" if trace.scaled else "the raw gradient"
    return Answer(
        method="noise",
        findings=tuple(findings),
        assumes=ASSUMES.format(what=what),
        samples=len(trace.losses) * study.base,
        steps=len(trace.losses),
        seconds=time.perf_counter() - began,
    )


def _measured(study: Study, settings: Settings, steps: int, watcher: Watcher | None) -> Trace:
    """Train at the base batch size and return the measurements of every step."""
    workload, process = study.workload, study.process
    bare, optimizer = workload.fresh(seed=settings.seed, device=process.device)
    target = ProbeTarget(
        name=workload.name,
        model=process.replicate(bare),
        optimizer=optimizer,
        loss=study.training_loss,
        batches=study.data.train,
        base_batch_size=study.base,
        micro_batch_size=workload.micro_batch_size,
        run_steps=steps,
        schedule=workload.schedule,
    )
    with keep_random_state(accelerators_of(bare), torch_seed=settings.seed):
        return measure_steps(
            target,
            steps=steps,
            batch_size=study.base,
            seed=settings.seed,
            progress=watcher.counting(f"noise of {workload.name}") if watcher else None,
        )


def _critical_batch(
    known: NoiseEstimate | NotEnough,
    *,
    start: float | None,
    stop: float | None,
    loss: float | None,
) -> CriticalBatch:
    where = "whole run" if start is None or stop is None else f"{start:.0%} to {stop:.0%}"
    if isinstance(known, NotEnough):
        return CriticalBatch(where=where, start=start, stop=stop, loss=loss, missing=known)
    batch = Range(value=known.noise_scale, low=known.low, high=known.high)
    return CriticalBatch(where=where, start=start, stop=stop, loss=loss, batch=batch)
