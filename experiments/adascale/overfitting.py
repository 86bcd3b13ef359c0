"""Why AdaScale ends above scale 1 on digits: does it miss the minimum, or overfit?

A run of 670 base steps on 1,071 digits ends at a training loss of nearly nothing. Were AdaScale's
higher test loss there a failure to train, it would stay where runs end before they overfit
(digits-short: 200 base steps), and where weight decay keeps them from it (digits-decay: 0.01).
Were it overfitting, it would be gone in both.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.adascale.setup import at_scale_one, scaled
from experiments.adascale.table import difference
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part

CELLS = ("digits", "digits-short", "digits-decay")
"""Workloads."""

SCALES, SEEDS = (8, 32), 10

HEADER = ("workload", "scale", "steps", "samples", "train loss", "less scale 1", "test loss",
          "less scale 1")  # fmt: skip


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(__doc__.split("\n\n", 1)[1].strip())
    findings.text.append(f"{SEEDS} seeds; differences are paired by seed, with 95 % intervals.")
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
    return findings


PART = Part(title="Overfitting on digits", find=find, spots=True)
