"""Compare AdaScale with simpler methods at the base learning rate that was tuned for scale 1.

The methods without a + train on as many samples as the run at scale 1: none (the learning rate
stays), sqrt (square-root scaling), linear (linear scaling) and LSW (linear scaling with a warm-up
over 5.5 % of the run). The methods with a + take as many optimizer steps as AdaScale. The method
mean-gain+ multiplies the learning rate by a constant, the mean multiplier of the AdaScale run. The
last row of each table trains at scale 1 on as many samples as AdaScale took.

The column "mean lr multiplier" has the mean factor on the base learning rate. Losses are means over
seeds. Differences are paired by seed and have 95 % confidence intervals. The gain is the number of
base steps divided by the number of optimizer steps. Quality has held if AdaScale's validation loss
minus that of scale 1 is at most 10 % of the latter at the upper end of the interval. Quality is
worse if the difference is above 10 % at the lower end, and otherwise nothing is shown. See
[the terms](../README.md#terms) for scale.
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
"""(Workload, scale) -> number of seeds."""

CUT: dict[str, str] = {
    "fashion-resnet8": "the runs would take an hour on two cores",
    "scale 32 of the CNN": "the runs would take half an hour",
    "the transformers with 0.5M parameters": "a run takes four times as long as a run of the "
    "narrow transformers",
    "scale 32 of the transformers": "the runs would take half an hour",
}
"""What was not measured -> the reason."""

MARGIN = 0.1
"""Largest relative increase of the validation loss over scale 1 with which quality has held."""

BASE = "scale 1"
"""Name of the run at the base batch size."""

RIVALS = ("linear+", "LSW+", "sqrt+", "mean-gain+")
"""Methods that the first paragraph of the page compares with AdaScale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Hold the results of all methods for one workload and one scale.

    Args:
        workload: Name of the workload.
        scale: Scale S of the runs.
        results: Name of a method -> its results, in order of seeds.
        forecasts: (mean gain, lower bound, upper bound) that a probe of the first half of the run
            at scale 1 forecasts, in order of seeds.
    """

    workload: str
    scale: int
    results: dict[str, list[Result]]
    forecasts: list[tuple[float, ...]]


def cell(ledger: Ledger, workload: str, scale: int, seeds: int) -> Cell:
    """Make or read all runs of a workload at one scale."""
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
    """Return the runs that one AdaScale run is compared with."""
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
    """Return the test losses of `a` minus those of `b`, by seed; None if any run diverged."""
    if len(a) != len(b) or any(r.diverged for r in (*a, *b)):
        return None
    return [x.test["loss"] - y.test["loss"] for x, y in zip(a, b, strict=True)]


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    cells = [cell(ledger, workload, scale, CELLS[workload, scale]) for workload, scale in CELLS]
    tables = Findings()
    qualities = [_rows(tables, found) for found in cells]
    findings.text.append(_answer(cells, qualities))
    findings.text += tables.text
    findings.numbers |= tables.numbers
    findings.method(__doc__.split("\n\n", 1)[1])
    findings.leave_out(CUT)
    return findings


def _answer(cells: Sequence[Cell], qualities: Sequence[str]) -> str:
    """Return the first paragraph of the page: the question, and what the tables show."""
    words = [
        (
            "Does AdaScale keep the quality of training at the base batch size, and is it better "
            "than simpler methods that take equally many steps? Quality has held in "
            f"{qualities.count('held')} of {len(cells)} tables and is worse in "
            f"{qualities.count('worse')}; neither is shown in {qualities.count('not shown')}."
        )
    ]
    for method in RIVALS:
        pairs = [(f.results[method], f.results["AdaScale"]) for f in cells if method in f.results]
        known = [mean(found) for a, b in pairs if (found := difference(a, b)) is not None]
        lower = sum(one.low is not None and one.low > 0.0 for one in known)
        higher = sum(one.high is not None and one.high < 0.0 for one in known)
        words.append(
            f"Compared with {method}, AdaScale's test loss is shown to be lower in {lower} and "
            f"higher in {higher} of the {len(known)} tables in which no run of {method} diverged."
        )
    return " ".join(words)


def _rows(findings: Findings, found: Cell) -> str:
    """Add the table of one workload at one scale, and return whether the quality has held."""
    name = f"{found.workload}, scale {found.scale}"
    base, own = found.results[BASE], found.results["AdaScale"]
    accuracy = "accuracy" in base[0].test
    findings.text.append(f"## {name}, {len(base)} seeds")
    header = ["method", "steps", "samples", "mean lr multiplier"]
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
    findings.table(
        [*header, "training loss", "test loss", "test loss minus that of scale 1",
         "test loss minus AdaScale's"],
        rows,
    )  # fmt: skip
    pairs = zip(map(final_loss, own), map(final_loss, base), strict=True)
    apart = mean([a - b for a, b in pairs])
    margin = MARGIN * mean([final_loss(r) for r in base]).value
    gain = mean([r.mean_gain for r in own])
    quality = _quality(apart.low, apart.high, margin)
    findings.text.append(
        f"AdaScale's gain is {shown(gain, '.2f')}; it can be at most {found.scale}. "
        f"Quality: {quality}. AdaScale's validation loss minus that of scale 1 is "
        f"{shown(apart, sign=True)}, and the margin is {margin:.3f}."
    )
    findings.add(f"{name}: gain", gain, least=0.03 * gain.value)
    findings.text.append(_forecast(findings, found))
    return quality


def _forecast(findings: Findings, found: Cell) -> str:
    """Return how the forecasts of `largebatch probe` compare with the gains of the runs."""
    gains = [result.mean_gain for result in found.results["AdaScale"]]
    if len(found.forecasts) < len(gains):
        missing = len(gains) - len(found.forecasts)
        return (
            f"`largebatch probe` gave no forecast for {missing} of {len(gains)} seeds, because the "
            "signal was too small."
        )
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
        f"From the first half of the run at scale 1, `largebatch probe` forecast a gain of "
        f"{said.value:.2f}. The forecast differs from the gain of the run by "
        f"{errors.value:+.0%} [{low}, {high}]. The gain of the run is inside the interval of the "
        f"forecast for {inside} of {len(gains)} seeds."
    )


def _quality(low: float | None, high: float | None, margin: float) -> str:
    """Return whether the quality has held, from the interval of the difference and the margin."""
    if low is None or high is None or not math.isfinite(high):
        return "not shown"
    if high <= margin:
        return "held"
    return "worse" if low > margin else "not shown"


def draw(ledger: Ledger, path: Path) -> None:
    """Draw the validation loss of scale 1 and AdaScale over base steps and over samples.

    If AdaScale keeps the quality of training, the curves over base steps coincide.
    """
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
    drawn.suptitle(
        "Validation loss of AdaScale over base steps (left) and samples (right), with 95 % "
        "confidence intervals", fontsize=10,
    )  # fmt: skip
    drawn.savefig(path, dpi=110)


PART = Part(title="AdaScale compared with simpler methods", find=find, draw=draw, spots=True)
