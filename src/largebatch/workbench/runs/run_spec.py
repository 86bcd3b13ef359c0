"""Describe the settings of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from largebatch.core.measurement import Budget
from largebatch.core.rule import Rule, chain, names_within
from largebatch.rules import Schedule
from largebatch.workbench.workloads import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Hold the settings of one run.

    Args:
        workload: Workload to train. The settings of the workload are tuned for the base batch size.
        rule: Rule that sets the learning rate and the batch size. The workload's schedule is
            applied after the rule, unless the rule contains a schedule.
        method: Name of the rule.
        scale: Batch size as a multiple S = B / B0 of the base batch size.
        budget: Length of the run.
        seed: Seed of the model and of the sample order.
        lr: Base learning rate. The default is the learning rate of the workload.
        clip_norm: Largest norm of the gradient; None to leave gradients unclipped.
        evaluations: Number of points of the validation curve. The last point is the end of the run.
        max_micro_batch_size: Largest number of samples in one backward call on one rank, or "auto"
            for the largest number that fits into memory. The default is the smaller of the base
            batch size and the workload's micro-batch size.
        first_batch_size: Batch size of the first step in samples, if a schedule sets it. The
            default first batch size is S * B0.
    """

    workload: Workload
    rule: Rule
    method: str
    scale: int
    budget: Budget
    seed: int = 0
    lr: float | None = None
    clip_norm: float | None = None
    evaluations: int = 8
    max_micro_batch_size: int | Literal["auto"] | None = None
    first_batch_size: int | None = None

    @property
    def batch_size(self) -> int:
        """Return the batch size of the first step, in samples over all ranks."""
        return self.first_batch_size or self.scale * self.workload.base_batch_size

    @property
    def whole_rule(self) -> Rule:
        """Return the rule with the workload's schedule, unless the rule contains a schedule."""
        factor = self.workload.schedule
        if factor is None or "Schedule" in names_within(self.rule):
            return chain(self.rule)
        return chain(self.rule, Schedule(factor=factor))

    @property
    def facts(self) -> dict[str, Any]:
        """Return the settings, without the rule, that the header of the record holds."""
        return {
            "workload": self.workload.name,
            "method": self.method,
            "scale": self.scale,
            "seed": self.seed,
            "lr": self.workload.base_lr if self.lr is None else self.lr,
            "clip_norm": self.clip_norm,
        }
