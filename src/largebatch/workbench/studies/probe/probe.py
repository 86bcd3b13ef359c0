"""`largebatch probe`: a short run on a copy of the model, which tells what larger batches give.

The steps are measured at the base batch, cut into PARTS micro-batches. Where noise dominates, the
error of the squared norm has k / (k - 1) times the least variance that these samples allow: 2,
1.33, 1.14 with 2, 4, 8 parts. On the built-in CNN and transformer 4 parts take 1.17 times the time
of 2, and 8 parts 1.5 to 1.65 times (one core), so 4 give the most for their cost. Accumulating
several base batches at the same weights would give more for each sample, since only gradients at
the same weights can be compared; but such a step costs several steps' samples and moves the weights
by one, so the probe would see a small part of the run, along which the noise scale moves. It is the
remedy where there is no signal otherwise: `batch_size=`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from largebatch.checks.snapshot import copy_run
from largebatch.checks.subject import Loss
from largebatch.measure.blocks import BlockNorms
from largebatch.measure.meter import Meter
from largebatch.measure.parameters import bare
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.random_state import accelerators_of, generators_of, keep_random_state
from largebatch.measure.taps import Detached
from largebatch.workbench.studies.probe.forecast import noise_of_series, overscaled
from largebatch.workbench.studies.probe.result import Block, ProbeResult, outlook
from largebatch.workbench.studies.probe.train import Progress, Subject, Trace, batches_of, train
from largebatch.workbench.workloads import Workload, load, names
from largebatch.workbench.workloads.data import size

LEAST_STEPS = 200
"""Fewest steps that are taken where the user names none."""


def probe(
    workload: Workload | str,
    *,
    steps: int | None = None,
    seed: int = 0,
    scale: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> ProbeResult:
    """Trains a fresh model of a workload at its base rate for a while and reports what its gradient
    noise says about larger batches.

    Args:
        workload: or its name, as for `workloads.load`.
        steps: to train; None is half of the workload's budget, at least LEAST_STEPS.
        seed: of weights, samples and intervals.
        scale: how many times the base batch the lines to paste are for; None is the last doubling
            that pays.
        batch_size: samples of one measured step, at least the base batch, which is taken where it
            is None. More give more signal a step, and the probe sees less of the run for its cost.
        progress: called after each step.

    Raises:
        ValueError: fewer samples than the base batch has, a scale below 1, or a loss that is a sum.
        NotFinite: training diverges.
    """
    command_name = workload if isinstance(workload, str) else None
    workload = load(workload) if isinstance(workload, str) else workload
    if workload.name in names():
        command_name = command_name or workload.name
    data = workload.data()
    model, optimizer = workload.fresh(seed=seed)
    whole = round(workload.budget_epochs * size(data.train) / workload.base_batch_size)
    with keep_random_state(accelerators_of(model), torch_seed=seed):
        return _probe(
            Subject(
                name=workload.name,
                model=model,
                optimizer=optimizer,
                loss=workload.loss,
                batches=data.train,
                base_batch_size=workload.base_batch_size,
                micro_batch_size=workload.micro_batch_size,
                run_steps=max(whole, 1),
                schedule=workload.schedule,
                command_name=command_name,
            ),
            steps=steps or max(whole // 2, LEAST_STEPS),
            seed=seed,
            scale=scale,
            batch_size=batch_size or workload.base_batch_size,
            progress=progress,
        )


def probe_run(
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
    progress: Progress | None = None,
) -> ProbeResult:
    """The same for a model in hand, at any point of its training. It works on copies: model,
    gradients, optimizer and random generators are afterwards as they were.

        print(probe_run(model, optimizer, lambda model, batch: ..., dataset, base_batch_size=64))

    Args:
        model: bare, or in DistributedDataParallel when several processes share the batch.
        optimizer: with the learning rate that suits `base_batch_size`.
        loss: (model, batch) -> mean loss of the batch, a scalar.
        batches: a data set, tensors, or a loader, whose batches are cut into smaller ones; on
            several ranks each has its own loader. An iterator is used up.
        base_batch_size: b, samples of a step over all ranks.
        steps: to train.
        run_steps: steps of the whole run at the base batch, for the forecast; None is `steps`.
        seed, scale, batch_size, progress: as in `probe`.

    Raises:
        ValueError: as `probe`, or a model that cannot be copied.
        NotFinite: training diverges.
    """
    own = generators_of(batches)
    with keep_random_state(accelerators_of(model), generators=own, torch_seed=seed):
        twin, twin_optimizer = copy_run(model, optimizer)
        return _probe(
            Subject(
                name=type(bare(model)).__name__,
                model=twin,
                optimizer=twin_optimizer,
                loss=loss,
                batches=batches,
                base_batch_size=base_batch_size,
                run_steps=run_steps or steps,
            ),
            steps=steps,
            seed=seed,
            scale=scale,
            batch_size=batch_size or base_batch_size,
            progress=progress,
        )


def _probe(
    subject: Subject,
    *,
    steps: int,
    seed: int,
    scale: int | None,
    batch_size: int,
    progress: Progress | None,
) -> ProbeResult:
    _check_arguments(subject, steps=steps, scale=scale, batch_size=batch_size)
    began = time.perf_counter()
    blocks = BlockNorms()
    meter = Meter(subject.model, statistics=[blocks, PreconditionedNorms()], tap=Detached())
    adam = PreconditionedNorms().supports(subject.optimizer)
    lr = float(subject.optimizer.param_groups[0]["lr"])
    batches = batches_of(subject, batch_size=batch_size, ranks=meter.rank_count, seed=seed)
    trace = train(
        subject,
        meter=meter,
        blocks=blocks,
        adam=adam,
        steps=steps,
        batches=batches,
        progress=progress,
    )
    numbers = sum(blocks.sizes.values())
    scaled = adam and not overscaled(
        trace.preconditioned, batch_size=batch_size, parameters=numbers
    )
    base, run_steps = subject.base_batch_size, max(subject.run_steps, steps)
    facts = {"base_batch_size": base, "run_steps": run_steps, "seed": seed}
    series = trace.preconditioned if scaled else trace.moments
    losses = trace.losses[len(trace.losses) - len(series) :]
    noise, pooled, along = noise_of_series(series, losses, **facts)
    bare_noise = noise_of_series(trace.moments, trace.losses, **facts)[0] if scaled else None
    return ProbeResult(
        name=subject.name,
        command_name=subject.command_name,
        optimizer=type(subject.optimizer).__name__,
        adam=adam,
        preconditioned=scaled,
        base_lr=lr,
        base_batch_size=base,
        batch_size=batch_size,
        micro_batches=trace.parts,
        ranks=meter.rank_count,
        dataset_size=batches.dataset_size,
        steps=len(trace.losses),
        run_steps=run_steps,
        seed=seed,
        seconds=time.perf_counter() - began,
        noise=noise,
        pooled=pooled,
        along=along,
        bare_noise=bare_noise,
        blocks=_blocks(trace, blocks, bare(subject.model), facts),
        checks=tuple(trace.checks),
        outlook=outlook(noise, base_batch_size=base, run_steps=run_steps, scale=scale),
    )


def _check_arguments(subject: Subject, *, steps: int, scale: int | None, batch_size: int) -> None:
    if steps < 1 or (scale is not None and scale < 1):
        raise ValueError(f"steps and scale are at least 1; got steps={steps}, scale={scale}.")
    if batch_size < subject.base_batch_size:
        raise ValueError(
            f"A measured step has at least the base batch, {subject.base_batch_size} samples; got "
            f"batch_size={batch_size}. Leave it out, or use "
            f"batch_size={4 * subject.base_batch_size} for more signal a step."
        )


def _blocks(
    trace: Trace, blocks: BlockNorms, model: nn.Module, facts: Mapping[str, int]
) -> tuple[Block, ...]:
    variances = {name: sum(pair[0] for pair in pairs) for name, pairs in trace.blocks.items()}
    whole = sum(variances.values())
    return tuple(
        Block(
            name=_with_class(model, name),
            parameters=blocks.sizes[name],
            noise_share=variances[name] / whole if whole > 0.0 else 0.0,
            noise=noise_of_series(trace.blocks[name], trace.losses, **facts)[0],
        )
        for name in blocks.names
    )


def _with_class(model: nn.Module, name: str) -> str:
    """A module's name with its class, or a parameter's name as it is."""
    modules = dict(model.named_modules())
    return f"{name} ({type(modules[name]).__name__})" if name in modules else name
