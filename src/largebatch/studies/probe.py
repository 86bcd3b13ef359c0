"""Measure the gradient noise of a user's own run, and forecast what larger batches would give.

The steps are measured at the base batch size, cut into PARTS micro-batches. If a step is cut into k
micro-batches and noise dominates, the variance of the estimated squared norm is k / (k - 1) times
the smallest variance that the samples of the step allow. The factor is 2, 1.33, 1.14 with k = 2, 4,
8 micro-batches. On the built-in CNN and transformer, on one core, 4 micro-batches take 1.17 times
the time of 2 micro-batches, and 8 micro-batches take 1.5 to 1.65 times the time of 2 micro-batches.
Of 2, 4 and 8 micro-batches, 4 micro-batches give the best ratio of precision to cost.

Accumulating several base batches at the same weights would give more precision per sample than
single base batches, because only gradients at the same weights can be compared. But a step of
several base batches uses the samples of several steps and moves the weights only once. The probe
would therefore see only a small part of the run, although the noise scale changes along the run. If
the probe finds no noise scale, pass a larger `batch_size=` to accumulate several base batches per
measured step.
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
    """Train a copy of the model for some steps, and forecast from its gradient noise what larger
    batches would give.

        print(lb.probe(model, optimizer, lambda model, batch: ..., dataset, base_batch_size=64))

    `probe` can be called at any point of a training run. Afterwards, the model, its gradients, the
    optimizer and the random generators are unchanged.

    >>> import torch, largebatch as lb
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> loss = lambda model, x: model(x).square().mean()
    >>> found = lb.probe(model, optimizer, loss, torch.randn(64, 3), base_batch_size=8, steps=20)
    >>> found.steps, found.micro_batches
    (20, 4)

    Args:
        model: Model to probe: a plain module, or one in DistributedDataParallel if several
            processes share the batch.
        optimizer: Optimizer of the model, with the learning rate that suits `base_batch_size`.
        loss: Function (model, batch) -> mean loss of the batch, a scalar tensor.
        batches: Data set, tensors, or a loader whose batches are cut into smaller ones. On several
            ranks, each rank has its own loader. If `batches` is an iterator, the probe uses it up.
        base_batch_size: Base batch size b: number of samples per step over all ranks, at least 2.
        steps: Number of steps to train.
        run_steps: Number of steps of the whole run at the base batch size, for the forecast, at
            least `steps`; None is `steps`.
        seed: Seed of the sample order and of the intervals.
        scale: Multiple of the base batch size that the printed lines to paste use. None uses the
            multiple up to which doubling the batch saves a quarter of the steps or more, at least
            2.
        batch_size: Number of samples in one measured step, at least the base batch size, which is
            the default. A larger `batch_size` makes the estimate of each step more precise, but the
            same number of samples then covers a shorter part of the run.
        progress: Function that is called with (steps done, total steps) after each step.

    Raises:
        ValueError: A number is not whole or is too small, the data has fewer samples than a step
            needs, the run is shorter than the probe, or the model cannot be copied; the error is
            raised before training. In the first step, the error is raised if the loss is a sum.
        NotFinite: Training diverged.
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
    """Probe a model that may be trained; the arguments have the same meaning as in `probe`."""
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
        ("base_batch_size", base_batch_size, 2, "samples", 64),
        ("batch_size", batch_size, 2, "samples", 4 * max(base_batch_size, 16)),
        ("steps", steps, 1, "optimizer steps", 400),
        ("run_steps", run_steps, 1, "steps of the whole run at the base batch size", 10_000),
        ("scale", 1 if scale is None else scale, 1, "base batches", 8),
    )
    for name, value, least, what, usual in counts:
        if not is_count(value, least=least):
            raise ValueError(
                f"{name}={value!r} was given, but it must be a whole number of {what}, at least "
                f"{least}. For example: lb.probe(..., {name}={usual})."
            )
    if batch_size < base_batch_size:
        raise ValueError(
            f"batch_size={batch_size} was given, but a measured step needs at least "
            f"base_batch_size={base_batch_size} samples. Remove batch_size, or pass "
            f"batch_size={4 * base_batch_size} for a more precise estimate per step."
        )


def _check_run(*, steps: int, run_steps: int) -> None:
    """Raise an error if the run is shorter than its probe."""
    if is_count(run_steps, least=1) and is_count(steps, least=1) and run_steps < steps:
        raise ValueError(
            f"run_steps={run_steps} was given, but the probe trains for steps={steps}, which must "
            "not be more than the steps of the whole run. "
            f"Pass lb.probe(..., steps={run_steps}, run_steps={run_steps})."
        )


def _useful(trace: Trace, *, base_batch_size: int) -> Series | None:
    """Return the result of `useful_signal`; None if the measured steps were larger than the base
    batch.
    """
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
    """Return a module's name with its class, or a parameter's name unchanged."""
    modules = dict(model.named_modules())
    return f"{name} ({type(modules[name]).__name__})" if name in modules else name
