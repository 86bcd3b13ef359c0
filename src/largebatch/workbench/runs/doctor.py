"""`largebatch doctor`: what would go silently wrong in a run of a workload, before it is made."""

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
    """What was found of the run that `largebatch train` would make.

    Args:
        workload, method, scale: of the run.
        batch_size: samples of a step over all ranks.
        ranks: processes that share it.
        sound: whether no finding is an error.
        check_up: the findings.
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
    """Builds the run that `train` would make and checks it without a step of training.

    Args:
        workload: a name, "package.module:factory", or the workload itself.
        method: a name of `METHODS`, or a rule of your own.
        scale: S = B / B0, at least 1.
        seconds: about how long to time the cost of measuring; 0 leaves it out.

    Raises:
        ValueError: an unknown name or a bad amount.
        LargeBatchError: missing data.
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
                refused = Finding(name="set-up", level="error", seen=str(error))
                check_up = CheckUp(findings=(refused,))
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
