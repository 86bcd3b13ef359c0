"""The critical batch as the noise scale, along one whole run at the base batch.

    noise scale = variance of one sample's gradient / squared norm of the true gradient    [samples]

McCandlish et al., 2018, arXiv 1812.06162, where it is B_simple; `largebatch.analysis.noise` has the
estimator and its interval.
"""

from __future__ import annotations

import time

import numpy as np

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NoiseEstimate, NotEnough, along
from largebatch.measure.blocks import BlockNorms
from largebatch.measure.meter import Meter
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.random_state import accelerators_of, keep_random_state
from largebatch.measure.taps import Detached
from largebatch.workbench.studies.critical.lab import Lab
from largebatch.workbench.studies.critical.settings import Settings, Watcher
from largebatch.workbench.studies.critical.values import Answer, Finding
from largebatch.workbench.studies.probe.forecast import noise_of_series, overscaled
from largebatch.workbench.studies.probe.train import Subject, Trace, batches_of, train
from largebatch.workbench.workloads import Batch

ASSUMES = (
    "the batch at which {what} is as much signal as noise. Curvature counts alike in all "
    "directions, and the theory is for plain SGD"
)


def noise(lab: Lab, settings: Settings, watcher: Watcher | None) -> Answer:
    """Trains one run at the base batch and measures every step of it."""
    began = time.perf_counter()
    steps = max(lab.budget // lab.base, 1)
    trace, adam, parameters = _measured(lab, settings, steps, watcher)
    scaled = adam and not overscaled(
        trace.preconditioned, batch_size=lab.base, parameters=parameters
    )
    series = trace.preconditioned if scaled else trace.moments
    skipped = len(trace.losses) - len(series)
    losses = trace.losses[skipped:]
    whole, _, _ = noise_of_series(
        series, losses, base_batch_size=lab.base, run_steps=steps, seed=settings.seed
    )
    findings = [
        _finding(
            piece.noise,
            start=(piece.start + skipped) / steps,
            stop=(piece.stop + skipped) / steps,
            loss=float(np.mean(losses[piece.start : piece.stop])) if losses else None,
        )
        for piece in along(series, settings.points, seed=settings.seed)
    ]
    known = whole.estimate or whole.missing
    assert known is not None, "one of the two is there"
    findings.append(_finding(known, start=None, stop=None, loss=None))
    lab.spent.steps += len(trace.losses)
    lab.spent.samples += len(trace.losses) * lab.base
    what = "the gradient as Adam scales it" if scaled else "the bare gradient"
    return Answer(
        method="noise",
        findings=tuple(findings),
        assumes=ASSUMES.format(what=what),
        samples=len(trace.losses) * lab.base,
        steps=len(trace.losses),
        seconds=time.perf_counter() - began,
    )


def _measured(
    lab: Lab, settings: Settings, steps: int, watcher: Watcher | None
) -> tuple[Trace, bool, int]:
    """(what every step showed, whether the optimizer is Adam-like, numbers of a gradient)."""
    workload = lab.workload
    bare, optimizer = workload.fresh(seed=settings.seed, device=lab.place.device)
    model = lab.place.replicate(bare)
    subject = Subject(
        name=workload.name,
        model=model,
        optimizer=optimizer,
        loss=lambda model, batch: workload.loss(model, _moved(lab, batch)),
        batches=lab.data.train,
        base_batch_size=lab.base,
        micro_batch_size=workload.micro_batch_size,
        run_steps=steps,
        schedule=workload.schedule,
    )
    blocks = BlockNorms()
    meter = Meter(model, statistics=[blocks, PreconditionedNorms()], tap=Detached())
    adam = PreconditionedNorms().supports(optimizer)
    with keep_random_state(accelerators_of(bare), torch_seed=settings.seed):
        trace = train(
            subject,
            meter=meter,
            blocks=blocks,
            adam=adam,
            steps=steps,
            batches=batches_of(
                subject, batch_size=lab.base, ranks=meter.rank_count, seed=settings.seed
            ),
            progress=watcher.counting(f"noise of {workload.name}") if watcher else None,
        )
    return trace, adam, sum(blocks.sizes.values())


def _moved(lab: Lab, batch: Batch) -> Batch:
    return tuple(tensor.to(lab.place.device) for tensor in batch)


def _finding(
    known: NoiseEstimate | NotEnough,
    *,
    start: float | None,
    stop: float | None,
    loss: float | None,
) -> Finding:
    where = "whole run" if start is None or stop is None else f"{start:.0%} to {stop:.0%}"
    if isinstance(known, NotEnough):
        return Finding(where=where, start=start, stop=stop, loss=loss, missing=known)
    batch = Range(value=known.noise_scale, low=known.low, high=known.high)
    return Finding(where=where, start=start, stop=stop, loss=loss, batch=batch)
