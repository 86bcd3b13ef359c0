"""Why the gain that a probe forecasts is not the one realised.

A probe measures the gradient's noise along the path of scale 1. Two things differ in the run that
it is for. Its path: with less noise in each step the weights do not bounce as far from the minimum,
so their gradient holds less signal. And its averages: AdaScale's gain is that of the last thousand
small gradients, in which large early gradients outweigh small late ones.

The share of signal is that of a base batch's squared gradient, from sums over a quarter of the base
steps; "whole" is its mean over them, and "gain 8" what AdaScale's formula makes of it at scale 8,
without any average. "Realised" is the mean gain that AdaScale had in these runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from experiments.adascale.setup import at_scale_one, scaled
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Run, Told
from experiments.lab.workloads import workload as load

import largebatch as lb

CELLS = ("digits", "fashion-logistic")
"""Workloads."""

SCALES, SEEDS, QUARTERS = (1, 8, 32), 5, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Run):
    """A run that tells the share of signal in each quarter of its base steps."""

    def told(self, control: lb.Controller, record: lb.MemoryRecord) -> Told:
        base, length = load(self.workload).base_batch_size, self.budget.amount
        sums = [[0.0, 0.0] for _ in range(QUARTERS)]
        for seen, _ in record.steps:
            if seen.moments is not None:
                quarter = min(int(QUARTERS * seen.base_steps / length), QUARTERS - 1)
                sums[quarter][0] += seen.moments.sqnorm
                sums[quarter][1] += seen.moments.variance / base
        shares = [max(signal, 0.0) / (max(signal, 0.0) + noise) for signal, noise in sums]
        return Told(notes={f"{q}": float(f"{share:.5g}") for q, share in enumerate(shares)})


def watched(workload: str, scale: int, seed: int) -> Watched:
    """Scale 1 with four micro-batches a step that are only looked at, or AdaScale."""
    plain = scaled(workload, scale, seed) if scale > 1 else at_scale_one(workload, seed)
    settings = {field.name: getattr(plain, field.name) for field in fields(plain)}
    if scale == 1:
        settings |= {"rule": lb.chain(lb.Observe()), "method": "watched",
                     "micro_batch": load(workload).base_batch_size // 4}  # fmt: skip
    return Watched(**settings)


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(__doc__.split("\n\n", 1)[1].strip())
    header = ["workload", "path of", *(f"quarter {q + 1}" for q in range(QUARTERS)), "whole",
              "gain 8", "realised"]  # fmt: skip
    rows = []
    for workload in CELLS:
        runs = {s: [watched(workload, s, seed) for seed in range(SEEDS)] for s in SCALES}
        ledger.results([run for row in runs.values() for run in row])
        for scale, row in runs.items():
            results = ledger.results(row)
            quarters = [
                mean([r.told.notes[f"{q}"] for r in results]).value for q in range(QUARTERS)
            ]
            wholes = mean([math.fsum(r.told.notes.values()) / len(r.told.notes) for r in results])
            gain = mean([r.mean_gain for r in results])
            rows.append(
                [
                    workload,
                    f"scale {scale}",
                    *(f"{value:.2f}" for value in quarters),
                    shown(wholes, ".2f"),
                    f"{8.0 / (1.0 + 7.0 * wholes.value):.2f}",
                    "" if scale == 1 else f"{gain.value:.2f} of {scale}",
                ]
            )
            findings.add(f"{workload}, scale {scale}: share of signal", wholes, least=0.03)
    findings.text.append(f"{SEEDS} seeds; means with 95 % intervals.")
    findings.table(header, rows)
    return findings


PART = Part(title="The noise along a larger batch's path", find=find)
