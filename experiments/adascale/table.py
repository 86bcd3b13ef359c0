"""The table: AdaScale beside what one would do instead, at the rate tuned for scale 1.

At scale 1's samples: none, linear, linear with warm-up over 5.5 % of the run (LSW). At AdaScale's
optimizer steps, with a +: the same, the square root, and the constant multiplier that is the mean
of AdaScale's own (mean-gain+). And scale 1 itself, trained on for as many samples as AdaScale used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.adascale.setup import ADAM, at_scale_one, final_loss, probed, scaled, stretched
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.rules import Multiplied
from experiments.lab.run import Result, Run
from experiments.lab.workloads import workload as load

import largebatch as lb
from largebatch import methods

CELLS: dict[tuple[str, int], int] = {
    ("digits", 8): 10,
    ("digits", 32): 10,
    ("fashion-logistic", 8): 10,
    ("fashion-logistic", 32): 10,
    ("fashion-cnn", 8): 5,
    ("fashion-cnn-plain", 8): 5,
    ("stdlib-narrow-sgd", 8): 5,
    ("stdlib-narrow", 8): 5,
}
"""(workload, scale) -> seeds."""

CUT: dict[str, str] = {
    "fashion-resnet8": "left out for its hour of two cores",
    "scale 32 of the CNN": "left out for its half hour",
    "the transformers of 0.5M parameters": "four times as long as the narrow ones",
    "scale 32 of the transformers": "left out for its half hour",
}
"""What is not measured -> why."""

MARGIN = 0.1
"""AdaScale keeps scale 1's quality where its validation loss is at most this fraction above."""

BASE = "scale 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The results of each method by its name, and (mean gain, low, high) as a probe of the first
    half of a run at scale 1 forecasts it; seeds in order."""

    workload: str
    scale: int
    results: dict[str, list[Result]]
    forecasts: list[tuple[float, ...]]


def cell(ledger: Ledger, workload: str, scale: int, seeds: int) -> Cell:
    """Makes, or reads, all runs of a workload at a scale."""
    base = [at_scale_one(workload, seed, evaluations=8) for seed in range(seeds)]
    own = [scaled(workload, scale, seed, evaluations=8) for seed in range(seeds)]
    probes = [probed(workload, seed) for seed in range(seeds)]
    ledger.results([*base, *own, *probes])
    runs = {BASE: base, "AdaScale": own}
    for seed, (run, result) in enumerate(zip(own, ledger.results(own), strict=True)):
        for other in _others(run, result, base[seed]):
            runs.setdefault(other.method, []).append(other)
    ledger.results([run for row in runs.values() for run in row])
    return Cell(
        workload=workload,
        scale=scale,
        results={name: ledger.results(row) for name, row in runs.items()},
        forecasts=[
            forecast[1:]
            for result in ledger.results(probes)
            for forecast in result.forecast
            if forecast[0] == scale
        ],
    )


def _others(run: Run, result: Result, base: Run) -> Iterator[Run]:
    """Whom an AdaScale run is compared with."""
    b0 = load(run.workload).base_batch_size
    samples = lb.Budget(samples=round(base.budget.amount) * b0)
    same = replace(run, budget=samples, evaluations=1)
    fixed = {"none": methods.none(), "sqrt": methods.sqrt()}
    if run.workload not in ADAM:
        fixed |= {"linear": methods.linear(), "LSW": methods.linear_warmup()}
    for name, rule in fixed.items():
        yield replace(same, method=name, rule=rule)
    if result.diverged:
        return
    for name, rule in {**fixed, "mean-gain": Multiplied(factor=result.mean_multiplier)}.items():
        yield stretched(run, name, rule, steps=result.steps)
    longer = lb.Budget(samples=result.samples)
    yield replace(base, method="scale 1, AdaScale's samples", budget=longer, evaluations=1)


def difference(a: Sequence[Result], b: Sequence[Result]) -> list[float] | None:
    """Test loss of a less that of b, by seed; None where a run diverged."""
    if len(a) != len(b) or any(r.diverged for r in (*a, *b)):
        return None
    return [x.test["loss"] - y.test["loss"] for x, y in zip(a, b, strict=True)]


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text.append(__doc__.split("\n\n", 1)[1].strip())
    findings.text.append(
        "Means over seeds; intervals are of 95 %, differences are of the test loss and paired by "
        "seed. Gain is the mean of base steps a step. Quality is held where the whole interval of "
        f"AdaScale's validation loss less scale 1's lies below {MARGIN:.0%} of the latter."
    )
    for (workload, scale), seeds in CELLS.items():
        found = cell(ledger, workload, scale, seeds)
        _rows(findings, found)
    findings.leave_out(CUT)
    return findings


def _rows(findings: Findings, found: Cell) -> None:
    name = f"{found.workload}, scale {found.scale}"
    base, own = found.results[BASE], found.results["AdaScale"]
    accuracy = "accuracy" in base[0].test
    findings.text.append(f"## {name}, {len(base)} seeds")
    header = ["method", "steps", "samples", "lr x"]
    header += ["test accuracy"] if accuracy else []
    rows = []
    for method, results in found.results.items():
        finished = [r for r in results if not r.diverged]
        lost = len(results) - len(finished)
        row = [method]
        if not finished:
            rows.append([*row, *[""] * (4 + accuracy), f"all {lost} diverged", "", ""])
            continue
        row += [
            f"{mean([r.steps for r in finished]).value:.0f}",
            f"{mean([r.samples for r in finished]).value:,.0f}",
            f"{mean([r.mean_multiplier for r in finished]).value:.2f}",
        ]
        if accuracy:
            row.append(f"{100 * mean([r.test['accuracy'] for r in finished]).value:.2f} %")
        loss = mean([r.test["loss"] for r in finished])
        row.append(f"{mean([r.train['loss'] for r in finished]).value:.3f}")
        row.append(shown(loss) + (f" ({lost} diverged)" if lost else ""))
        for other, label in ((base, BASE), (own, "AdaScale")):
            apart = difference(results, other)
            row.append("" if apart is None or results is other else shown(mean(apart), sign=True))
            if apart is not None and results is not other:
                findings.add(f"{name}: {method} less {label}", mean(apart), least=0.01)
        rows.append(row)
        findings.add(f"{name}: {method}, test loss", loss, least=0.01)
    findings.table([*header, "train loss", "test loss", "less scale 1", "less AdaScale"], rows)
    pairs = zip(map(final_loss, own), map(final_loss, base), strict=True)
    apart = mean([a - b for a, b in pairs])
    margin = MARGIN * mean([final_loss(r) for r in base]).value
    gain = mean([r.mean_gain for r in own])
    quality = _quality(apart.low, apart.high, margin)
    findings.text.append(
        f"Gain {shown(gain, '.2f')} of {found.scale}. Quality: {quality} (validation loss less "
        f"scale 1's {shown(apart, sign=True)}, margin {margin:.3f})."
    )
    findings.add(f"{name}: gain", gain, least=0.03 * gain.value)
    findings.text.append(_forecast(findings, found))


def _forecast(findings: Findings, found: Cell) -> str:
    """What probes said beside what the runs of the same seeds gave."""
    gains = [result.mean_gain for result in found.results["AdaScale"]]
    if len(found.forecasts) < len(gains):
        told = len(gains) - len(found.forecasts)
        return f"`probe` had too little signal in {told} of {len(gains)} seeds."
    said = mean([value for value, _, _ in found.forecasts])
    errors = mean(
        [value / gain - 1.0 for (value, _, _), gain in zip(found.forecasts, gains, strict=True)]
    )
    inside = sum(
        low <= gain <= high for (_, low, high), gain in zip(found.forecasts, gains, strict=True)
    )
    findings.add(f"{found.workload}, scale {found.scale}: forecast", said, least=0.05 * said.value)
    low, high = f"{errors.low:+.0%}", f"{errors.high:+.0%}"
    return (
        f"`probe`, on the first half of a run at scale 1, forecast a gain of {said.value:.2f}: "
        f"{errors.value:+.0%} [{low}, {high}] of the one realised, which lies within the "
        f"forecast's interval in {inside} of {len(gains)} seeds."
    )


def _quality(low: float | None, high: float | None, margin: float) -> str:
    if low is None or high is None or not math.isfinite(high):
        return "not shown"
    if high <= margin:
        return "held"
    return "worse" if low > margin else "not shown"


def draw(ledger: Ledger, path: Path) -> None:
    """Scale 1 and AdaScale over base steps and over samples: the first is where they should lie on
    each other."""
    from experiments.lab.draw import COLOURS, figure, logarithmic

    workloads = list(dict.fromkeys(workload for workload, _ in CELLS))
    drawn, axes = figure(rows=len(workloads), columns=2, width=4.6)
    for row, workload in enumerate(workloads):
        scales = [scale for name, scale in CELLS if name == workload]
        cells = {s: cell(ledger, workload, s, CELLS[workload, s]) for s in scales}
        lines = {1: cells[scales[0]].results[BASE]}
        lines |= {scale: found.results["AdaScale"] for scale, found in cells.items()}
        for column, (at, unit) in enumerate(((2, "base steps"), (1, "samples"))):
            axis = axes[row][column]
            for (scale, results), colour, marker in zip(
                lines.items(), COLOURS, "osD^", strict=False
            ):
                curves = [r.curve for r in results if not r.diverged]
                length = min(map(len, curves))
                points = [
                    (mean([c[i][at] for c in curves]).value, mean([c[i][3] for c in curves]))
                    for i in range(length)
                ]
                x = [p[0] for p in points]
                y = [p[1].value for p in points]
                axis.plot(x, y, marker=marker, ms=4, color=colour, label=f"scale {scale}")
                low = [p[1].low or p[1].value for p in points]
                high = [p[1].high or p[1].value for p in points]
                axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            logarithmic(axis)
            axis.set_xlabel(unit)
            axis.set_title(workload, fontsize=10)
        axes[row][0].set_ylabel("validation loss")
    axes[0][0].legend(frameon=False)
    drawn.suptitle("AdaScale over base steps and over samples, with 95 % intervals", fontsize=10)
    drawn.savefig(path, dpi=110)


PART = Part(title="AdaScale beside its baselines", find=find, draw=draw, spots=True)
