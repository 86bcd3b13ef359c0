"""Measure which settings of AdaScale's gain estimate change the result.

Each variant runs at the same scale, learning rate and seeds as the default settings, until it has
taken the base steps of the run. The default settings of AdaScale were chosen with these tables, on
digits and on text. Gain and test loss are means over seeds. The differences from the default are
paired by seed and have 95 % confidence intervals.

A part is a gradient that is measured separately within a step, by default the gradient of one base
batch. "Averages of the paper" uses the plain mean until the averaging window is full, and an
exponential average afterwards. "Bounds of the paper" bounds each estimate by an absolute floor
before it is averaged. "Window n" averages over about n base batches. "One step late" uses the
moments of the previous step. "gain^p" multiplies the learning rate by the gain to the power p.
"Temporal, 1 part" takes two consecutive steps as the two parts. See [the terms](../README.md#terms)
for scale and gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from experiments.adascale.setup import ADAM, scaled
from experiments.adascale.table import difference
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.rules import Lagged
from experiments.lab.run import Result, Run
from experiments.lab.workloads import workload as load
from torch import nn

import largebatch as lb
from largebatch import methods

CELLS: dict[tuple[str, int], int] = {
    ("digits", 8): 10,
    ("digits", 32): 10,
    ("stdlib-narrow-sgd", 8): 5,
    ("stdlib-narrow", 8): 5,
}
"""(Workload, scale) -> number of seeds."""

CUT: dict[str, str] = {
    "scale 32 of the transformers": "the runs would take half an hour",
    "Fashion-MNIST": "no default was chosen on this data set, so that it can serve as a test",
}
"""What was not measured -> the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByExamples(Run):
    """Describe a run whose parts are the single examples of each base batch."""

    def meter(self, model: nn.Module) -> lb.Meter:
        return lb.Meter(model, examples=lb.PerExample())


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Describe one variant of AdaScale.

    Args:
        rule: Rule that decides.
        parts: Number of gradients that are measured separately in each step; None for one gradient
            per base batch.
        temporal: If True, two consecutive steps are taken as two parts.
        examples: If True, single examples are the parts.
    """

    rule: lb.Rule
    parts: int | None = None
    temporal: bool = False
    examples: bool = False


def variants(workload: str, scale: int) -> dict[str, Variant]:
    """Return the variants by name; the first one has the default settings."""
    if workload in ADAM:
        bare = lb.chain(lb.AdaScale(exponent=0.5))
        whole = lb.chain(lb.AdaScale(statistic="preconditioned_moments"))
        return {
            "as Adam sees it, gain^0.5": Variant(rule=methods.adascale_adam()),
            "bare gradient, gain^0.5": Variant(rule=bare),
            "as Adam sees it, gain": Variant(rule=whole),
        }
    rules = {
        "default": methods.adascale(),
        "averages and bounds of the paper": methods.adascale_paper(),
        "averages of the paper": lb.chain(lb.AdaScale(averaging="mean-then-ema")),
        "window 300": lb.chain(lb.AdaScale(window=300.0)),
        "window 3000": lb.chain(lb.AdaScale(window=3000.0)),
        "one step late": lb.chain(Lagged(rule=lb.AdaScale())),
        "every 10th step": methods.adascale(every=10),
        "gain^0.75": lb.chain(lb.AdaScale(exponent=0.75)),
        "gain^0.5": lb.chain(lb.AdaScale(exponent=0.5)),
    }
    default = methods.adascale()
    found = {name: Variant(rule=rule) for name, rule in rules.items()}
    counts = [parts for parts in (2, 4, 8, 16) if parts < scale]
    found |= {f"{parts} parts": Variant(rule=default, parts=parts) for parts in counts}
    if workload == "digits":
        found["single examples"] = Variant(rule=default, examples=True)
    found["temporal, 1 part"] = Variant(rule=default, temporal=True)
    return found


def run_of(workload: str, scale: int, seed: int, name: str, variant: Variant) -> Run:
    """Return the run of one variant."""
    batch = scale * load(workload).base_batch_size
    run = replace(
        scaled(workload, scale, seed),
        method=name,
        rule=variant.rule,
        micro_batch=None if variant.parts is None else batch // variant.parts,
        temporal=variant.temporal,
    )
    if not variant.examples:
        return run
    return ByExamples(**{field.name: getattr(run, field.name) for field in fields(run)})


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(
        "Which settings of AdaScale's gain estimate change the result? If two consecutive steps "
        "are taken as the two parts, the estimated gain is far too large and training fails. The "
        "averaging window and the power of the gain change steps and test loss. For the number of "
        "parts, from two up to single examples, and for a delay of one step, no difference in test "
        "loss is shown."
    )
    header = ("variant", "steps", "gain", "gain minus the default's", "test loss",
              "test loss minus the default's")  # fmt: skip
    for (workload, scale), seeds in CELLS.items():
        made = {
            name: [run_of(workload, scale, seed, name, variant) for seed in range(seeds)]
            for name, variant in variants(workload, scale).items()
        }
        ledger.results([run for runs in made.values() for run in runs])
        name = f"{workload}, scale {scale}"
        findings.text.append(f"## {name}, {seeds} seeds")
        results = {variant: ledger.results(runs) for variant, runs in made.items()}
        findings.table(header, _rows(findings, name, results))
    findings.method(__doc__.split("\n\n", 1)[1])
    findings.leave_out(CUT)
    return findings


def _label(variant: str) -> str:
    """Return the name of a variant in the tables; the records keep the name of version 0.1."""
    words = variant.replace("bare gradient", "raw gradient")
    return words.replace("as Adam sees it", "preconditioned gradient")


def _rows(findings: Findings, name: str, results: dict[str, list[Result]]) -> list[Sequence[str]]:
    default = next(iter(results.values()))
    rows: list[Sequence[str]] = []
    for variant, found in results.items():
        finished = [r for r in found if not r.diverged]
        lost = len(found) - len(finished)
        if not finished:
            rows.append((_label(variant), "", "", "", f"all {lost} diverged", ""))
            continue
        gain = mean([r.mean_gain for r in finished])
        loss = mean([r.test["loss"] for r in finished])
        apart = None if found is default else difference(found, default)
        gains = (
            mean([a.mean_gain - b.mean_gain for a, b in zip(found, default, strict=True)])
            if apart is not None
            else None
        )
        rows.append(
            (
                _label(variant),
                f"{mean([r.steps for r in finished]).value:.0f}",
                f"{gain.value:.2f}",
                "" if gains is None else shown(gains, ".2f", sign=True),
                shown(loss) + (f" ({lost} diverged)" if lost else ""),
                "" if apart is None else shown(mean(apart), sign=True),
            )
        )
        findings.add(f"{name}: {variant}, gain", gain, least=0.03 * gain.value)
        if apart is not None:
            findings.add(f"{name}: {variant} less default", mean(apart), least=0.01)
    return rows


PART = Part(title="AdaScale: settings of the gain estimate", find=find, spots=True)
