"""Measure the gradient noise of a user's own run, and what larger batches would give.

The steps are measured at the base batch, cut into PARTS micro-batches. Where noise dominates, the
error of the squared norm has k / (k - 1) times the least variance that these samples allow: 2,
1.33, 1.14 with 2, 4, 8 parts. On the built-in CNN and transformer 4 parts take 1.17 times the time
of 2, and 8 parts 1.5 to 1.65 times (one core), so 4 give the most for their cost. Accumulating
several base batches at the same weights would give more for each sample, since only gradients at
the same weights can be compared; but such a step costs several steps' samples and moves the weights
by one, so the probe would see a small part of the run, along which the noise scale moves. It is the
remedy if there is no signal otherwise: `batch_size=`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from largebatch.analysis.bootstrap import Series
from largebatch.checks.checked_run import Loss
from largebatch.checks.snapshot import copy_run
from largebatch.core.number_checks import is_count
from largebatch.measure.parameters import bare
from largebatch.measure.random_state import accelerators_of, generators_of, keep_random_state
from largebatch.studies.measured_steps import ProbeTarget, StepCounter, Trace, measure_steps
from largebatch.studies.noise_of_run import noise_of_series
from largebatch.studies.probe_result import ProbeResult
from largebatch.studies.probe_values import Block, outlook_of
from largebatch.studies.useful_signal import useful_signal


def probe(
    model: nn.Module,
    optimizer: Optimizer,
    loss: Loss,
    batches: Any,
    *,
    base_batch_size: int,
    steps: int = 400,
    run_steps: int | None = None,
    seed: int = 0,
    scale: int | None = None,
    batch_size: int | None = None,
    progress: StepCounter | None = None,
) -> ProbeResult:
    """Train a copy of the model for a while and report what its gradient noise says about larger
    batches.

        print(lb.probe(model, optimizer, lambda model, batch: ..., dataset, base_batch_size=64))

    Call it at any point of a training run. Model, gradients, optimizer and random generators are
    afterwards as they were.

    Args:
        model: bare, or in DistributedDataParallel if several processes share the batch.
        optimizer: with the learning rate that suits `base_batch_size`.
        loss: (model, batch) -> mean loss of the batch, a scalar.
        batches: a data set, tensors, or a loader, whose batches are cut into smaller ones; on
            several ranks each has its own loader. An iterator is used up.
        base_batch_size: b, samples of a step over all ranks, 2 or more.
        steps: to train.
        run_steps: steps of the whole run at the base batch, for the forecast, at least `steps`;
            None is `steps`.
        seed: of samples and intervals.
        scale: how many times the base batch the lines to paste are for; None is the last doubling
            that pays.
        batch_size: samples of one measured step, at least the base batch, which is the default.
            More give more signal per step, and the probe sees less of the run for its cost.
        progress: called after each step.

    Raises:
        ValueError: before training, a number that is not whole or too small, fewer samples than a
            step has, a run that is shorter than the probe, or a model that cannot be copied; in the
            first step, a loss that is a sum.
        NotFinite: training diverges.
    """
    run_steps = steps if run_steps is None else run_steps
    _check_run(steps=steps, run_steps=run_steps)
    own = generators_of(batches)
    with keep_random_state(accelerators_of(model), generators=own, torch_seed=seed):
        twin, twin_optimizer = copy_run(model, optimizer)
        return probe_target(
            ProbeTarget(
                name=type(bare(model)).__name__,
                model=twin,
                optimizer=twin_optimizer,
                loss=loss,
                batches=batches,
                base_batch_size=base_batch_size,
                run_steps=run_steps,
            ),
            steps=steps,
            seed=seed,
            scale=scale,
            batch_size=base_batch_size if batch_size is None else batch_size,
            progress=progress,
        )


def probe_target(
    target: ProbeTarget,
    *,
    steps: int,
    seed: int,
    scale: int | None,
    batch_size: int,
    progress: StepCounter | None,
) -> ProbeResult:
    """Probe a model that may be trained; the arguments are those of `probe`."""
    _check_arguments(
        base_batch_size=target.base_batch_size,
        batch_size=batch_size,
        steps=steps,
        run_steps=target.run_steps,
        scale=scale,
    )
    began = time.perf_counter()
    lr = float(target.optimizer.param_groups[0]["lr"])
    trace = measure_steps(target, steps=steps, batch_size=batch_size, seed=seed, progress=progress)
    base, run_steps = target.base_batch_size, max(target.run_steps, steps)
    run = {"base_batch_size": base, "run_steps": run_steps, "seed": seed}
    facts: dict[str, Any] = {**run, "dataset_size": trace.dataset_size}
    scaled = trace.scaled
    blocks = _blocks_of(trace, bare(target.model), facts)
    noise, pooled, along = noise_of_series(trace.series, trace.series_losses, **facts)
    bare_noise = noise_of_series(trace.moments, trace.losses, **facts)[0] if scaled else None
    return ProbeResult(
        name=target.name,
        command_name=target.command_name,
        optimizer=type(target.optimizer).__name__,
        adam=trace.adam,
        preconditioned=scaled,
        base_lr=lr,
        base_batch_size=base,
        batch_size=batch_size,
        micro_batches=trace.parts,
        ranks=trace.ranks,
        dataset_size=trace.dataset_size,
        steps=len(trace.losses),
        run_steps=run_steps,
        seed=seed,
        seconds=time.perf_counter() - began,
        noise=noise,
        pooled=pooled,
        along=along,
        bare_noise=bare_noise,
        blocks=blocks,
        checks=tuple(trace.findings),
        outlook=outlook_of(
            noise,
            series=trace.series,
            scale=scale,
            known_samples=trace.known_samples,
            useful=_useful(trace, base_batch_size=base),
            **run,
        ),
    )


def _check_arguments(
    *, base_batch_size: int, batch_size: int, steps: int, run_steps: int, scale: int | None
) -> None:
    counts = (
        ("base_batch_size", base_batch_size, 2, "samples, which are split into parts", 64),
        ("batch_size", batch_size, 2, "samples", 4 * max(base_batch_size, 16)),
        ("steps", steps, 1, "optimizer steps", 400),
        ("run_steps", run_steps, 1, "steps of the whole run at the base batch", 10_000),
        ("scale", 1 if scale is None else scale, 1, "base batches", 8),
    )
    for name, value, least, what, usual in counts:
        if not is_count(value, least=least):
            raise ValueError(
                f"{name}={value!r} was given, but it is a whole number of {what}, {least} or "
                f"more. lb.probe(..., {name}={usual})"
            )
    if batch_size < base_batch_size:
        raise ValueError(
            f"A measured step has at least the base batch, {base_batch_size} samples; got "
            f"batch_size={batch_size}. Leave it out, or use "
            f"batch_size={4 * base_batch_size} for more signal a step."
        )


def _check_run(*, steps: int, run_steps: int) -> None:
    """Refuse a run that is shorter than its probe, whose last steps it would never reach."""
    if is_count(run_steps, least=1) and is_count(steps, least=1) and run_steps < steps:
        raise ValueError(
            f"run_steps={run_steps} was given, but the probe trains for steps={steps}, and it is "
            "at most as long as the run that it forecasts. "
            f"lb.probe(..., steps={run_steps}, run_steps={run_steps})"
        )


def _useful(trace: Trace, *, base_batch_size: int) -> Series | None:
    """Return `useful_signal`; None if the steps were larger than those that the forecast is of."""
    if trace.batch_size != base_batch_size:
        return None
    return useful_signal(trace.series, losses=trace.series_losses, lrs=trace.lrs)


def _blocks_of(trace: Trace, model: nn.Module, facts: Mapping[str, Any]) -> tuple[Block, ...]:
    variances = {name: sum(pair[0] for pair in pairs) for name, pairs in trace.blocks.items()}
    whole = sum(variances.values())
    return tuple(
        Block(
            name=_with_class(model, name),
            parameters=trace.sizes[name],
            noise_share=variances[name] / whole if whole > 0.0 else 0.0,
            noise=noise_of_series(trace.blocks[name], trace.losses, **facts)[0],
        )
        for name in trace.blocks
    )


def _with_class(model: nn.Module, name: str) -> str:
    """Return a module's name with its class, or a parameter's name as it is."""
    modules = dict(model.named_modules())
    return f"{name} ({type(modules[name]).__name__})" if name in modules else name
