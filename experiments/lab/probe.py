"""Record the forecast of `largebatch probe` as a run."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from experiments.lab import workloads
from experiments.lab.run import Result, Run

from largebatch.workbench.studies.probe import probe_workload
from largebatch.workbench.workloads.data import size


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(Run):
    """Describe one call of `largebatch probe` over the first half of a run.

    The probe trains at the base learning rate. The budget is the length of the run in base steps.
    """

    @property
    def changes(self) -> tuple[str, ...]:
        return (*super(Probe, self).changes, "the forecast simulates the rule")

    def make(self) -> Result:
        torch.set_num_threads(1)
        began = time.perf_counter()
        workload = workloads.workload(self.workload)
        data, length = workload.data(), self.budget.amount
        assert self.budget.unit == "base_steps"
        found = probe_workload(
            replace(
                workload,
                base_lr=workload.base_lr if self.lr is None else self.lr,
                budget_epochs=length * workload.base_batch_size / size(data.train),
                data=lambda: data,
            ),
            seed=self.seed,
        )
        forecasts = () if found.outlook is None else found.outlook.forecasts
        return Result(
            steps=found.steps,
            samples=found.steps * workload.base_batch_size,
            base_steps=float(found.steps),
            mean_gain=1.0,
            mean_multiplier=1.0,
            diverged=False,
            train={},
            validation={},
            test={},
            forecast=tuple(
                (float(f.scale), f.mean_gain.value, f.mean_gain.low, f.mean_gain.high)
                for f in forecasts
            ),
            seconds=time.perf_counter() - began,
        )
