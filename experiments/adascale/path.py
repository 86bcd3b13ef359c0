"""Measure why the gain that `largebatch probe` forecasts differs from the gain of the real run.

`largebatch probe` measures the gradient noise while it trains at scale 1. The run at a larger scale
differs in two ways. First, it takes another path: each step has less noise, so the weights stay
closer to the minimum, and the gradient contains less signal. Second, AdaScale averages its
estimates over about the last thousand base batches, and the large early gradients outweigh the
small late ones in this average.

The share of signal is the squared norm of the mean gradient divided by the mean squared norm of the
gradient of one base batch. It is computed from sums over one quarter of the base steps. The column
"whole run" has the mean of the four quarters. The column "gain at scale 8 for this share" has the
gain that AdaScale's formula gives for this share without averaging. The last column has the mean
gain of AdaScale in these runs.

Values are means over 5 seeds; intervals are 95 % confidence intervals. See
[the terms](../README.md#terms) for scale and gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from experiments.adascale.setup import at_scale_one, scaled
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Extra, Run
from experiments.lab.workloads import workload as load

import largebatch as lb

CELLS = ("digits", "fashion-logistic")
"""Names of the workloads."""

SCALES, SEEDS, QUARTERS = (1, 8, 32), 5, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Run):
    """Describe a run that records the share of signal in each quarter of its base steps."""

    def extra(self, control: lb.Controller, record: lb.MemoryRecord) -> Extra:
        base, length = load(self.workload).base_batch_size, self.budget.amount
        sums = [[0.0, 0.0] for _ in range(QUARTERS)]
        for seen, _ in record.steps:
            if seen.moments is not None:
                quarter = min(int(QUARTERS * seen.base_steps / length), QUARTERS - 1)
                sums[quarter][0] += seen.moments.sqnorm
                sums[quarter][1] += seen.moments.variance / base
        shares = [max(signal, 0.0) / (max(signal, 0.0) + noise) for signal, noise in sums]
        return Extra(notes={f"{q}": float(f"{share:.5g}") for q, share in enumerate(shares)})


def watched(workload: str, scale: int, seed: int) -> Watched:
    """Return a run of AdaScale, or for scale 1 a run whose noise is only measured.

    The run at scale 1 has four micro-batches per step, so that their variance can be measured.
    """
    plain = scaled(workload, scale, seed) if scale > 1 else at_scale_one(workload, seed)
    settings = {field.name: getattr(plain, field.name) for field in fields(plain)}
    if scale == 1:
        settings |= {"rule": lb.chain(lb.Observe()), "method": "watched",
                     "micro_batch": load(workload).base_batch_size // 4}  # fmt: skip
    return Watched(**settings)


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(
        "Why does the gain that `largebatch probe` forecasts differ from the gain of the real run? "
        "Along the path of a larger batch the gradient contains less signal than along the path of "
        "the base batch size, so AdaScale's formula gives a larger gain there. The averages of "
        "AdaScale then make the gain of the real run smaller than the formula gives."
    )
    header = ["workload", "path of the run at",
              *(f"share of signal, quarter {q + 1}" for q in range(QUARTERS)),
              "share of signal, whole run", "gain at scale 8 for this share",
              "AdaScale's mean gain"]  # fmt: skip
    rows = []
    for workload in CELLS:
        runs = {s: [watched(workload, s, seed) for seed in range(SEEDS)] for s in SCALES}
        ledger.results([run for row in runs.values() for run in row])
        for scale, row in runs.items():
            results = ledger.results(row)
            quarters = [
                mean([r.extra.notes[f"{q}"] for r in results]).value for q in range(QUARTERS)
            ]
            wholes = mean([math.fsum(r.extra.notes.values()) / len(r.extra.notes) for r in results])
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
    findings.table(header, rows)
    findings.method(__doc__.split("\n\n", 1)[1])
    return findings


PART = Part(title="AdaScale: gradient noise along the path of a larger batch", find=find)
