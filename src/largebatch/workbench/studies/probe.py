"""Probe a workload: train a fresh model for some steps and measure its gradient noise."""

from __future__ import annotations

from largebatch.measure.random_state import accelerators_of, keep_random_state
from largebatch.studies.measured_steps import ProbeTarget, StepCounter
from largebatch.studies.probe import probe_target
from largebatch.studies.probe_result import ProbeResult
from largebatch.workbench.workloads import Workload, load, names
from largebatch.workbench.workloads.data import size

LEAST_STEPS = 200
"""Smallest default number of training steps of a probe."""


def probe_workload(
    workload: Workload | str,
    *,
    steps: int | None = None,
    seed: int = 0,
    scale: int | None = None,
    batch_size: int | None = None,
    progress: StepCounter | None = None,
) -> ProbeResult:
    """Probe a fresh model of a workload at its base learning rate.

    >>> from largebatch import workbench
    >>> found = workbench.probe_workload("digits", steps=8)
    >>> found.name
    'digits'

    Args:
        workload: Workload, or its name as for `workloads.load`.
        steps: Number of training steps. By default, a probe takes half of the workload's budget and
            at least `LEAST_STEPS` steps.
        seed: Seed of the weights, the sample order and the confidence intervals.
        scale: Batch size for which the result gives commands, as a multiple of the base batch
            size. By default, the probe chooses the scale.
        batch_size: Number of samples per training step. By default, a step has one base batch.
        progress: Function that is called after each step.

    Raises:
        ValueError: The batch size is larger than the data set, the scale is below 1, or the loss is
            a sum over samples.
        NotFinite: Training diverged.
    """
    command_name = workload if isinstance(workload, str) else None
    workload = load(workload) if isinstance(workload, str) else workload
    if workload.name in names():
        command_name = command_name or workload.name
    data = workload.data()
    model, optimizer = workload.fresh(seed=seed)
    whole = round(workload.budget_epochs * size(data.train) / workload.base_batch_size)
    target = ProbeTarget(
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
    )
    with keep_random_state(accelerators_of(model), torch_seed=seed):
        return probe_target(
            target,
            steps=steps or max(whole // 2, LEAST_STEPS),
            seed=seed,
            scale=scale,
            batch_size=batch_size or workload.base_batch_size,
            progress=progress,
        )
