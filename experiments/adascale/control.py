"""Controls: does adapting to this run's own noise matter, and does a batch that changes?

Yoked: the multipliers that another seed's run measured, replayed blind for as many steps. Were the
gain no more than a curve over time, the yoked runs would do as well.

Elastic: workers come and go, in five equal parts of the budget. AdaScale runs to its own end; the
others get scale 1's samples, or with a + AdaScale's.
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

YOKED: dict[tuple[str, int], int] = {
    ("digits", 8): 10,
    ("digits", 32): 10,
    ("fashion-cnn", 8): 5,
    ("stdlib-narrow-sgd", 8): 5,
    ("stdlib-narrow", 8): 5,
}
"""(workload, scale) -> seeds."""

ELASTIC: dict[str, tuple[tuple[int, ...], int]] = {"digits": ((2, 8, 32, 8, 2), 10)}
"""Workload -> (scales, seeds)."""

CUT: dict[str, str] = {
    "changing batches on the CNN": "left out for its 20 minutes",
}
"""What is not measured -> why."""

HEADER = ("workload", "run", "steps", "samples", "test loss", "less AdaScale")


def yoked(ledger: Ledger, workload: str, scale: int, seeds: int) -> dict[str, list[Result]]:
    """AdaScale, and the same steps with the multipliers of the next seed."""
    own = [replace(scaled(workload, scale, seed), keep_gains=True) for seed in range(seeds)]
    results = ledger.results(own)
    power = 0.5 if workload in ADAM else 1.0
    blind = [
        stretched(
            run,
            "another seed's gains",
            Yoked(multipliers=tuple(g**power for g in results[(seed + 1) % seeds].gains)),
            steps=result.steps,
        )
        for seed, (run, result) in enumerate(zip(own, results, strict=True))
    ]
    return {"AdaScale": results, "another seed's gains": ledger.results(blind)}


def elastic(
    ledger: Ledger, workload: str, scales: tuple[int, ...], seeds: int
) -> dict[str, list[Result]]:
    """Each method under batches that change."""
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
    findings.text.append(__doc__.split("\n\n", 1)[1].strip())
    rows: list[Sequence[str]] = []
    for (workload, scale), seeds in YOKED.items():
        name = f"{workload}, scale {scale}, {seeds} seeds"
        rows += _rows(findings, name, yoked(ledger, workload, scale, seeds))
    findings.text.append("## Yoked")
    findings.table(HEADER, rows)
    rows = []
    for workload, (scales, seeds) in ELASTIC.items():
        name = f"{workload}, scales {', '.join(map(str, scales))}, {seeds} seeds"
        rows += _rows(findings, name, elastic(ledger, workload, scales, seeds))
    findings.text.append("## Elastic")
    findings.table(HEADER, rows)
    findings.leave_out(CUT)
    return findings


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


PART = Part(title="Yoked runs and batches that change", find=find, spots=True)
