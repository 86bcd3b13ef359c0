"""Compare the gains of largebatch's AdaScale with those of fairscale 0.4.13's AdaScale.

Both libraries get the same initial weights, samples and micro-batches. largebatch is set to
fairscale's averages: exponential averages with bias correction, with each estimate bounded before
it is averaged. The training loop with fairscale ends when the sum of the gains reaches the base
steps of the run, as fairscale's documentation describes.

In the run with scales 2, 8, 32, 8, 2 the batch size changes after each fifth of the run, and the
loop sets fairscale's scale and number of micro-batches each time. In the run with an infinite loss,
the loss of step 50 is infinite, and the loop with fairscale skips the optimizer step.

The column "largest early difference" has the largest relative difference between two gains in the
first 20 steps of any seed; after more steps, rounding makes two equal runs differ. Test losses are
means over seeds with 95 % confidence intervals. Differences are paired by seed. See
[the terms](../README.md#terms) for scale and gain.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from experiments.adascale.setup import at_scale_one, scaled
from experiments.adascale.table import difference
from experiments.lab import workloads
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.rules import Stages
from experiments.lab.run import Result, Run, train

import largebatch as lb
from largebatch.workbench.workloads import evaluate

WHOLE: dict[tuple[str, int], int] = {("digits", 8): 10}
"""(Workload, scale) -> number of seeds, for runs with a constant batch size."""

STAGES = (2, 8, 32, 8, 2)
"""Scales of the stages of the run whose batch size changes."""

SEEDS = 10
"""Number of seeds of the run whose batch size changes, and of the run with an infinite loss."""

SPOILED = 50
"""Index of the step whose loss is infinite."""

EARLY = 20
"""Number of first steps in which rounding does not yet make two equal runs differ."""

CUT: dict[str, str] = {}
"""What was not measured -> the reason."""

AS_PUBLISHED = lb.AdaScale(averaging="ema", clip="first")
"""AdaScale with the averages of fairscale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoiled(Run):
    """Describe a run with largebatch in which the loss of one step is infinite."""

    def make(self) -> Result:
        return train(self, spoiled=SPOILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer(Run):
    """Describe a run with fairscale's AdaScale.

    Args:
        stages: Scales of the equal stages of the run; empty for a constant batch size.
        spoiled: If True, the loss of step `SPOILED` is infinite.
    """

    stages: tuple[int, ...] = ()
    spoiled: bool = False

    def make(self) -> Result:
        from fairscale.optim import AdaScale

        torch.set_num_threads(1)
        began = time.perf_counter()
        workload, data = workloads.workload(self.workload), workloads.data(self.workload)
        torch.manual_seed(self.seed)
        model, optimizer = workload.fresh(seed=self.seed, lr=self.lr)
        base, scale = workload.base_batch_size, self.scale
        wrapped = AdaScale(optimizer, num_gradients_to_accumulate=scale, world_size=1)
        loader = lb.BatchLoader(
            data.train, batch_size=scale * base, max_micro_batch_size=base, seed=self.seed
        )
        loader.bind(rank=0, ranks=1, least_parts=1)
        length, clock, samples = self.budget.amount, 0.0, 0
        gains: list[float] = []
        while clock < length and not (gains and math.isnan(gains[-1])):
            coming = self._scale_at(clock / length)
            infinite = self.spoiled and len(gains) == SPOILED
            for micro_batch, _ in _step(loader):
                loss = workload.loss(model, micro_batch) / scale
                (loss * math.inf if infinite else loss).backward()
            samples += scale * base
            if infinite:
                gains.append(0.0)
            else:
                gains.append(float(wrapped.gain()))
                wrapped.step()
            wrapped.zero_grad()
            clock += gains[-1]
            if coming != scale:
                scale = coming
                wrapped.set_num_gradients_to_accumulate(scale)
                wrapped.set_scale(scale)
                loader.resize(scale * base)
        lost = math.isnan(clock)
        return Result(
            steps=len(gains),
            samples=samples,
            base_steps=clock if not lost else math.fsum(gains[:-1]),
            mean_gain=math.fsum(g for g in gains if not math.isnan(g)) / len(gains),
            mean_multiplier=math.fsum(g for g in gains if not math.isnan(g)) / len(gains),
            diverged=lost,
            train={} if lost else evaluate(model, workload, data.seen),
            validation={} if lost else evaluate(model, workload, data.validation),
            test={} if lost else evaluate(model, workload, data.test),
            gains=tuple(float(f"{gain:.6g}") for gain in gains if not math.isnan(gain)),
            seconds=time.perf_counter() - began,
        )

    def _scale_at(self, progress: float) -> int:
        if not self.stages:
            return self.scale
        return self.stages[min(int(progress * len(self.stages)), len(self.stages) - 1)]


def _step(loader: lb.BatchLoader) -> Any:
    step = loader.next_step()
    assert step is not None
    yield from step
    loader.commit(step.batch_size)


def peer_of(run: Run, *, stages: tuple[int, ...] = (), spoiled: bool = False) -> Peer:
    """Return the same run with fairscale's AdaScale."""
    return Peer(
        workload=run.workload, method="fairscale", rule=AS_PUBLISHED, scale=run.scale,
        budget=run.budget, seed=run.seed, lr=run.lr, keep_gains=True, stages=stages,
        spoiled=spoiled,
    )  # fmt: skip


def pairs(ledger: Ledger) -> dict[str, tuple[list[Result], list[Result]]]:
    """Return name of a run -> (results of largebatch, results of fairscale), in order of seeds."""
    found: dict[str, tuple[list[Run], list[Run]]] = {}
    for (workload, scale), seeds in WHOLE.items():
        own = [
            replace(scaled(workload, scale, seed), rule=AS_PUBLISHED, keep_gains=True)
            for seed in range(seeds)
        ]
        found[f"{workload}, scale {scale}"] = (own, [peer_of(run) for run in own])
    stages = lb.chain(AS_PUBLISHED, Stages(scales=STAGES))
    changing = [
        replace(
            at_scale_one("digits", seed), method="AdaScale", rule=stages, scale=STAGES[0],
            keep_gains=True,
        )
        for seed in range(SEEDS)
    ]  # fmt: skip
    name = f"digits, scales {', '.join(map(str, STAGES))}"
    found[name] = (changing, [peer_of(run, stages=STAGES) for run in changing])
    spoiled = [
        Spoiled(
            workload="digits", method="AdaScale", rule=AS_PUBLISHED, scale=8, seed=seed,
            budget=at_scale_one("digits", seed).budget, lr=at_scale_one("digits", seed).lr,
            keep_gains=True,
        )
        for seed in range(SEEDS)
    ]  # fmt: skip
    found["digits, scale 8, a spoiled step"] = (
        list(spoiled),
        [peer_of(run, spoiled=True) for run in spoiled],
    )
    ledger.results([run for ours, theirs in found.values() for run in (*ours, *theirs)])
    return {
        name: (ledger.results(ours), ledger.results(theirs))
        for name, (ours, theirs) in found.items()
    }


def furthest(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the largest relative difference between the gains of two runs in the same step."""
    return max(abs(x / y - 1.0) if y else float(x != y) for x, y in zip(a, b, strict=False))


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(
        "Do largebatch and fairscale compute the same AdaScale gains? Yes: with the same averages, "
        "the gains of the first steps agree up to rounding. If the batch size changes within the "
        "run, the two libraries take different numbers of steps. After a step with an infinite "
        "loss, fairscale's gain is NaN in every run, and largebatch finishes every run."
    )
    header = ("run", "seeds", "steps of largebatch", "steps of fairscale",
              "largest early difference", "gain of largebatch", "gain of fairscale",
              "test loss of largebatch", "test loss of fairscale",
              "test loss of fairscale minus largebatch")  # fmt: skip
    rows = []
    for name, (ours, theirs) in pairs(ledger).items():
        early = max(
            furthest(a.gains[:EARLY], b.gains[:EARLY]) for a, b in zip(ours, theirs, strict=True)
        )
        lost = sum(result.diverged for result in theirs)
        apart = difference(theirs, ours)
        loss = mean([r.test["loss"] for r in ours])
        gain = mean([r.mean_gain for r in ours])
        kept = [r for r in theirs if not r.diverged]
        rows.append(
            (
                name.replace("a spoiled step", "one infinite loss"),
                str(len(ours)),
                f"{mean([r.steps for r in ours]).value:.0f}",
                f"{mean([r.steps for r in theirs]).value:.0f}" if kept else "",
                f"{early:.0e}",
                f"{gain.value:.3f}",
                f"{mean([r.mean_gain for r in kept]).value:.3f}" if kept else "NaN",
                shown(loss),
                shown(mean([r.test["loss"] for r in kept])) if kept else f"all {lost} diverged",
                "" if apart is None else shown(mean(apart), sign=True),
            )
        )
        findings.add(f"{name}: apart early", early, least=max(2 * early, 1e-4))
        findings.add(f"{name}: gain", gain, least=0.03 * gain.value)
        findings.add(f"{name}: lost by fairscale", float(lost), least=0.5)
        if apart is not None:
            findings.add(f"{name}: fairscale's less ours", mean(apart), least=0.01)
    findings.table(header, rows)
    findings.method(__doc__.split("\n\n", 1)[1])
    findings.leave_out(CUT)
    return findings


PART = Part(title="AdaScale compared with fairscale", find=find, spots=True)
