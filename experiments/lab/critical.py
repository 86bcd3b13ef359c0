"""Measure the critical batch size by one method, and record the complete answer as one run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from experiments.lab import workloads
from experiments.lab.run import Extra, Result, Run

from largebatch.core.codec import decode, encode
from largebatch.workbench.studies.critical.result import Critical
from largebatch.workbench.studies.critical.run_methods import critical
from largebatch.workbench.studies.critical.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic(Run):
    """Describe one call of `largebatch critical --by METHOD`, where METHOD is the field `method`.

    The budget is the length of the base run in samples.

    Args:
        settings: Settings of the command `critical`.
    """

    settings: Settings = field(default_factory=Settings)

    def make(self) -> Result:
        torch.set_num_threads(1)
        began = time.perf_counter()
        assert self.budget.unit == "samples"
        found = critical(
            workloads.workload(self.workload),
            by=(self.method,),
            budget=f"{self.budget.amount:.0f}",
            settings=self.settings,
        )
        (answer,) = found.answers
        return Result(
            steps=answer.steps,
            samples=answer.samples,
            base_steps=float(answer.steps),
            mean_gain=1.0,
            mean_multiplier=1.0,
            diverged=False,
            train={},
            validation={},
            test={},
            extra=Extra(whole=encode(found)),
            seconds=time.perf_counter() - began,
        )


def answered(result: Result) -> Critical:
    """Return the complete answer of the command `critical` that a run recorded."""
    found: Critical = decode(Critical, result.extra.whole)
    return found
