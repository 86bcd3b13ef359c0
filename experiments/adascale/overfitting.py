"""Measure whether AdaScale's higher test loss on digits is caused by overfitting.

A run of 670 base steps on the 1,071 training samples of digits ends with a training loss close to
0. There are two explanations for AdaScale's higher test loss: AdaScale trains worse, or it
overfits more. Two more workloads decide between these explanations. Runs of digits-short end after
200 base steps, before they overfit. Runs of digits-decay have a weight decay of 0.01, which
prevents overfitting. If AdaScale trains worse, its test loss is higher in both workloads. If it
overfits more, its test loss is higher in neither.

Losses are means over 10 seeds. Differences are paired by seed and have 95 % confidence intervals.
See [the terms](../README.md#terms) for scale.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.adascale.setup import at_scale_one, scaled
from experiments.adascale.table import difference
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part

CELLS = ("digits", "digits-short", "digits-decay")
"""Names of the workloads."""

SCALES, SEEDS = (8, 32), 10

HEADER = ("workload", "scale", "steps", "samples", "training loss",
          "training loss minus that of scale 1", "test loss",
          "test loss minus that of scale 1")  # fmt: skip


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(
        "Why does AdaScale have a higher test loss than the base batch size on digits? AdaScale "
        "overfits more: its training loss is not higher, and its test loss is not shown to be "
        "higher if the runs are shorter or have weight decay."
    )
    rows: list[Sequence[str]] = []
    for workload in CELLS:
        runs = {1: [at_scale_one(workload, seed) for seed in range(SEEDS)]}
        runs |= {s: [scaled(workload, s, seed) for seed in range(SEEDS)] for s in SCALES}
        ledger.results([run for row in runs.values() for run in row])
        base = ledger.results(runs[1])
        for scale, row in runs.items():
            results = ledger.results(row)
            trained = mean(
                [a.train["loss"] - b.train["loss"] for a, b in zip(results, base, strict=True)]
            )
            apart = difference(results, base)
            assert apart is not None
            rows.append(
                (
                    workload,
                    str(scale),
                    f"{mean([r.steps for r in results]).value:.0f}",
                    f"{mean([r.samples for r in results]).value:,.0f}",
                    f"{mean([r.train['loss'] for r in results]).value:.4f}",
                    "" if scale == 1 else shown(trained, ".4f", sign=True),
                    shown(mean([r.test["loss"] for r in results])),
                    "" if scale == 1 else shown(mean(apart), sign=True),
                )
            )
            if scale > 1:
                name = f"{workload}, scale {scale}"
                findings.add(f"{name}: train loss less scale 1", trained, least=0.005)
                findings.add(f"{name}: test loss less scale 1", mean(apart), least=0.01)
    findings.table(HEADER, rows)
    findings.method(__doc__.split("\n\n", 1)[1])
    return findings


PART = Part(title="AdaScale: overfitting on digits", find=find, spots=True)
