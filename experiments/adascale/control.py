"""Measure whether AdaScale profits from the noise of its own run, and how it handles a changing
batch size.

A yoked run replays the multipliers that AdaScale computed in the run with the next seed, for
equally many steps, and measures nothing itself. If a yoked run is as good as AdaScale, it does not
matter that AdaScale adapts to the noise of its own run.

In an elastic run, workers join and leave: the batch size changes after each fifth of the budget.
AdaScale runs until it has taken the base steps of the run at scale 1. The other methods train on as
many samples as the run at scale 1. A method with a + trains on as many samples as AdaScale.

Test losses are means over seeds with 95 % confidence intervals. Differences are paired by seed. See
[the terms](../README.md#terms) for scale, gain and the names of the methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from experiments.adascale.setup import ADAM, at_scale_one, scaled, stretched
from experiments.adascale.table import difference
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.rules import Stages, Yoked
from experiments.lab.run import Result, Run
from experiments.lab.workloads import workload as load

import largebatch as lb
from largebatch import methods
from largebatch.analysis.student import Mean

YOKED: dict[tuple[str, int], int] = {
    ("digits", 8): 10,
    ("digits", 32): 10,
    ("fashion-cnn", 8): 5,
    ("stdlib-narrow-sgd", 8): 5,
    ("stdlib-narrow", 8): 5,
}
"""(Workload, scale) -> number of seeds."""

ELASTIC: dict[str, tuple[tuple[int, ...], int]] = {"digits": ((2, 8, 32, 8, 2), 10)}
"""Workload -> (scales of the five stages, number of seeds)."""

CUT: dict[str, str] = {
    "a changing batch size on the CNN": "its runs would take 20 minutes",
}
"""What was not measured -> the reason."""

HEADER = ("workload", "method", "steps", "samples", "test loss", "test loss minus AdaScale's")

REPLAYED = "another seed's gains"
"""Name of the run that replays the gains of another seed."""


def yoked(ledger: Ledger, workload: str, scale: int, seeds: int) -> dict[str, list[Result]]:
    """Return the results of AdaScale and of runs that replay the multipliers of the next seed."""
    own = [replace(scaled(workload, scale, seed), keep_gains=True) for seed in range(seeds)]
    results = ledger.results(own)
    power = 0.5 if workload in ADAM else 1.0
    blind = [
        stretched(
            run,
            REPLAYED,
            Yoked(multipliers=tuple(g**power for g in results[(seed + 1) % seeds].gains)),
            steps=result.steps,
        )
        for seed, (run, result) in enumerate(zip(own, results, strict=True))
    ]
    return {"AdaScale": results, REPLAYED: ledger.results(blind)}


def elastic(
    ledger: Ledger, workload: str, scales: tuple[int, ...], seeds: int
) -> dict[str, list[Result]]:
    """Return the results of each method when the batch size changes within the run."""
    stages = Stages(scales=scales)
    base = [at_scale_one(workload, seed) for seed in range(seeds)]

    def under(run: Run, method: str, rule: lb.Rule, budget: lb.Budget) -> Run:
        whole = lb.chain(rule, stages)
        return replace(run, method=method, rule=whole, scale=scales[0], budget=budget)

    own = [under(run, "AdaScale", methods.adascale(), run.budget) for run in base]
    found = {"scale 1": ledger.results(base), "AdaScale": ledger.results(own)}
    b0 = load(workload).base_batch_size
    fixed = {"none": methods.none(), "sqrt": methods.sqrt(), "linear": methods.linear()}
    runs: dict[str, list[Run]] = {}
    for run, result in zip(base, found["AdaScale"], strict=True):
        lengths = {"": round(run.budget.amount) * b0, "+": result.samples}
        for name, rule in fixed.items():
            for plus, samples in lengths.items():
                budget = lb.Budget(samples=samples)
                runs.setdefault(name + plus, []).append(under(run, name + plus, rule, budget))
    ledger.results([run for row in runs.values() for run in row])
    return found | {name: ledger.results(row) for name, row in runs.items()}


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    rows: list[Sequence[str]] = []
    both: list[Mean] = []
    for (workload, scale), seeds in YOKED.items():
        name = f"{workload}, scale {scale}, {seeds} seeds"
        found = yoked(ledger, workload, scale, seeds)
        rows += _rows(findings, name, found)
        apart = difference(found[REPLAYED], found["AdaScale"])
        if apart is not None:
            both.append(mean(apart))
    findings.text.append(
        "Does it matter that AdaScale adapts to the gradient noise of its own run? Not shown: in "
        f"{sum(_holds_zero(one) for one in both)} of {len(YOKED)} comparisons, the 95 % interval "
        "of the difference in test loss between AdaScale and a replay of another seed's gains "
        "contains 0."
    )
    findings.text.append("## Yoked runs: the gains of another seed are replayed")
    findings.table(HEADER, rows)
    rows = []
    for workload, (scales, seeds) in ELASTIC.items():
        name = f"{workload}, scales {', '.join(map(str, scales))}, {seeds} seeds"
        rows += _rows(findings, name, elastic(ledger, workload, scales, seeds))
    findings.text.append("## Elastic runs: the batch size changes four times")
    findings.table(HEADER, rows)
    findings.method(__doc__.split("\n\n", 1)[1])
    findings.leave_out(CUT)
    return findings


def _holds_zero(difference: Mean) -> bool:
    """Return whether the interval of a difference contains 0."""
    assert difference.low is not None
    assert difference.high is not None
    return difference.low <= 0.0 <= difference.high


def _rows(findings: Findings, name: str, found: dict[str, list[Result]]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for method, results in found.items():
        finished = [r for r in results if not r.diverged]
        lost = len(results) - len(finished)
        clocks = [
            f"{mean([getattr(r, clock) for r in finished]).value:,.0f}" if finished else ""
            for clock in ("steps", "samples")
        ]
        losses = [r.test["loss"] for r in finished]
        text = shown(mean(losses)) if finished else ""
        apart = None if method == "AdaScale" else difference(results, found["AdaScale"])
        if finished and all(map(math.isfinite, losses)):
            findings.add(f"{name}: {method}", mean(losses), least=0.01)
        if apart is not None:
            findings.add(f"{name}: {method} less AdaScale", mean(apart), least=0.01)
        rows.append(
            (
                name,
                method,
                *clocks,
                text + (f" ({lost} of {len(results)} diverged)" if lost else ""),
                "" if apart is None else shown(mean(apart), sign=True),
            )
        )
    return rows


PART = Part(title="AdaScale: yoked runs and a changing batch size", find=find, spots=True)
