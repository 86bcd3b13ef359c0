"""One run before it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from largebatch.core.measurement import Budget
from largebatch.core.rule import Rule, chain, names_within
from largebatch.rules import Schedule
from largebatch.workbench.workloads import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run before it is made.

    Args:
        workload: model, data and settings tuned at the base batch.
        rule: what sets the learning rate; the workload's schedule is chained after it,
            unless it brings one.
        method: how the rule is called.
        scale: S = B / B0.
        budget: how long.
        seed: of the model and of the sample stream.
        lr: base rate; None for the workload's.
        clip_norm: largest norm of the gradient; None for any.
        evaluations: points of the validation curve; the last is the end.
        max_micro_batch_size: most samples of one backward on one rank, "auto" for what fits; None
            for one base batch, or less where the workload says that the memory holds less.
        first_batch_size: of the first step in samples, where a schedule says it; None for S B0.
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
        """B of the first step, S B0 or a schedule's, in samples over all ranks."""
        return self.first_batch_size or self.scale * self.workload.base_batch_size

    @property
    def whole_rule(self) -> Rule:
        """The rule, and after it the workload's schedule, unless the rule brings one."""
        factor = self.workload.schedule
        if factor is None or "Schedule" in names_within(self.rule):
            return chain(self.rule)
        return chain(self.rule, Schedule(factor=factor))

    @property
    def facts(self) -> dict[str, Any]:
        """What the header of the run's record says besides the rule."""
        return {
            "workload": self.workload.name,
            "method": self.method,
            "scale": self.scale,
            "seed": self.seed,
            "lr": self.workload.base_lr if self.lr is None else self.lr,
            "clip_norm": self.clip_norm,
        }
