"""Check a training run for silent mistakes before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from largebatch.checks.check import check
from largebatch.checks.finding import CheckUp, Finding
from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import Budget
from largebatch.core.rule import Rule
from largebatch.workbench.runs.distributed import process_group
from largebatch.workbench.runs.method_names import optimizer_of, rule_of
from largebatch.workbench.runs.method_optimizers import with_method_optimizer
from largebatch.workbench.runs.options import check_amounts
from largebatch.workbench.runs.run import controller_of
from largebatch.workbench.runs.run_spec import RunSpec
from largebatch.workbench.workloads import Batch, Workload, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Hold the findings of `doctor` about the run that `largebatch train` would make.

    Args:
        workload: Name of the workload.
        method: Name of the method.
        scale: Batch size as a multiple S of the base batch size.
        batch_size: Number of samples per training step, over all ranks.
        ranks: Number of processes that share each batch.
        sound: Whether no finding is an error.
        check_up: Findings of the check.
    """

    workload: str
    method: str
    scale: int
    batch_size: int
    ranks: int
    sound: bool
    check_up: CheckUp


def doctor(
    workload: str | Workload,
    *,
    method: str | Rule = "adascale",
    scale: int = 1,
    seconds: float = 3.0,
) -> Diagnosis:
    """Build the run that `train` would make and check it without a training step.

    >>> from largebatch import workbench
    >>> found = workbench.doctor("digits", scale=4, seconds=0)
    >>> found.batch_size, found.sound
    (64, True)

    Args:
        workload: Name of a workload, "package.module:factory", or a `Workload`.
        method: Name of a method in `METHODS`, or a rule object.
        scale: Batch size as a multiple S = B / B0 of the base batch size, at least 1.
        seconds: Approximate duration of the timing of the measurement overhead, in seconds. With
            0, the overhead is not timed.

    Raises:
        ValueError: A name is unknown, or an amount is invalid.
        LargeBatchError: The data are missing.
    """
    workload = load(workload) if isinstance(workload, str) else workload
    rule, name = rule_of(method)
    workload, _ = with_method_optimizer(workload, optimizer_of(method))
    check_amounts(scale=scale)
    spec = RunSpec(
        workload=workload, rule=rule, method=name, scale=scale, budget=Budget(steps=1), seed=0
    )
    with process_group() as process:
        data = workload.data()

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return workload.loss(model, process.moved(batch))

        with torch.random.fork_rng(devices=process.accelerators):
            try:
                control = controller_of(spec, process, data, record=None)
            except (ValueError, LargeBatchError) as error:
                failed = Finding(name="set-up", level="error", seen=str(error))
                check_up = CheckUp(findings=(failed,))
            else:
                check_up = check(control, loss, seconds=seconds)
    return Diagnosis(
        workload=workload.name,
        method=name,
        scale=scale,
        batch_size=spec.batch_size,
        ranks=process.ranks,
        sound=check_up.sound,
        check_up=check_up,
    )
