"""How far are rows' shares off under batch normalization?

Weights are held fixed after some steps. Batches are then drawn anew, with replacement, and each
gives its gradient and, in the same backward, the variance of one sample by its rows' shares. The
truth is the variance of the batches' gradients times the batch size, and the squared norm of their
mean without its noise, both for batches of this size. A ratio is the rows' value over the true one.
AdaScale's gain is that of the batch over batches of a 4th or a 16th of it.

Rows may serve decisions if noise scale and gains are within 15 % in every model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.batch_norm_rows.setup import MODELS, QUANTITIES, FixedWeights
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part
from experiments.lab.run import Result

import largebatch as lb

BATCH_SIZES = (32, 64, 128)
TRAINED = (0, 50, 300)
"""Steps after which the weights are held fixed."""

SEEDS = 3
"""Of weights and samples."""

BAR = 0.15
"""How far rows may be off to serve decisions."""

NULL = "MLP without normalization"
"""The model whose rows are examples, so that every ratio is 1 up to the noise of the draws."""

CUT = {
    "ResNet-8 at 28 x 28 and with 16 channels": "images are halved and it has 8, for the time",
    "ImageNet-sized models": "this machine has no accelerator",
}
"""What is not measured -> why."""


def runs_of(model: str, batch_size: int, trained: int) -> list[FixedWeights]:
    """One run for each seed."""
    return [
        FixedWeights(
            workload=MODELS[model].workload,
            method=model,
            rule=lb.rules.Observe(),
            scale=batch_size // BATCH_SIZES[0],
            budget=lb.Budget(steps=MODELS[model].draws),
            seed=seed,
            batch_size=batch_size,
            trained=trained,
        )
        for seed in range(SEEDS)
    ]


def ratio(result: Result, name: str) -> float:
    """Rows over truth; infinite if the rows leave no signal, nan if the draws do not show one."""
    notes = result.told.notes
    if name != "variance" and notes["true sqnorm"] <= 0.0:
        return math.nan
    if name == "noise scale" and notes["rows' sqnorm"] <= 0.0:
        return math.inf
    return notes[name]


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text += __doc__.strip().split("\n\n")[1:]
    cells = {
        (model, size, trained): runs_of(model, size, trained)
        for model in MODELS
        for size in BATCH_SIZES
        for trained in TRAINED
    }
    ledger.results([run for runs in cells.values() for run in runs])
    results = {cell: ledger.results(runs) for cell, runs in cells.items()}
    rows: list[Sequence[str]] = []
    for (model, size, trained), found in results.items():
        average = mean([ratio(result, "variance") for result in found])
        true = statistics.median(result.told.notes["true noise scale"] for result in found)
        others = (_shown([ratio(result, name) for result in found]) for name in QUANTITIES[2:])
        rows.append((model, str(size), str(trained), _scale(true), shown(average, ".2f"), *others))
        findings.add(f"{model}, batch {size}, {trained} steps: variance", average, least=0.15)
    findings.text.append(
        f"{SEEDS} seeds: the mean with its 95 % interval for the variance, else the median. "
        "'No signal' is a squared norm that is not positive, so that the noise scale is infinite."
    )
    header = ("model", "batch", "steps", "true noise scale", "variance", "noise scale",
              *QUANTITIES[3:])  # fmt: skip
    findings.table(header, rows)
    _summary(findings, results)
    findings.text.append(
        "Rows count what batch normalization cancels: within a channel the gradients of its input "
        "add up to 0, and so do their products with the normalized input. A bias before it has no "
        "gradient at all, but each of its rows has a share."
    )
    findings.leave_out(CUT)
    return findings


def _summary(findings: Findings, results: dict[tuple[str, int, int], list[Result]]) -> None:
    """Median, range and the bar, over all cells and seeds of each model."""
    findings.text.append("## All cells and seeds of a model")
    rows: list[Sequence[str]] = []
    for name in ("variance", *QUANTITIES[2:]):
        of_all: list[float] = []
        for model in MODELS:
            each = [
                value
                for (of, *_), found in results.items()
                if of == model
                for result in found
                if not math.isnan(value := ratio(result, name))
            ]
            of_all += each if model != NULL else []
            rows.append((name, model, *_row(each)))
        rows.append((name, "**all with batch normalization**", *_row(of_all)))
        findings.add(f"median {name}", statistics.median(of_all), least=0.2)
        findings.add(f"least {name}", min(of_all), least=0.2)
        findings.add(f"greatest {name}", max(of_all), least=0.8)
        inside = sum(abs(value - 1) <= BAR for value in of_all) / len(of_all)
        findings.add(f"within the bar: {name}", inside, least=0.1)
    findings.table(("ratio", "model", "median", "range", f"within {BAR:.0%}"), rows)


def _row(values: Sequence[float]) -> tuple[str, str, str]:
    inside = sum(abs(value - 1) <= BAR for value in values)
    low, high = min(values), max(values)
    spread = f"{low:.2f} to {_one(high)}"
    return _one(statistics.median(values)), spread, f"{inside} of {len(values)}"


def _one(value: float) -> str:
    return "no signal" if math.isinf(value) else f"{value:.2f}"


def _scale(value: float) -> str:
    return f"{value:.0f}" if value > 0.0 else "not shown"


def _shown(values: Sequence[float]) -> str:
    clear = [value for value in values if not math.isnan(value)]
    return _one(statistics.median(clear)) if clear else "not shown"


def draw(ledger: Ledger, path: Path) -> None:
    from experiments.lab.draw import COLOURS, figure

    drawn, axes = figure(rows=1, columns=len(MODELS), width=2.9, height=2.9)
    for axis, model in zip(axes[0], MODELS, strict=True):
        axis.axhspan(1 - BAR, 1 + BAR, color=COLOURS[3], alpha=0.2, linewidth=0)
        for colour, size in zip(COLOURS[1:], BATCH_SIZES, strict=False):
            for name, style in (("variance", "-"), ("gain 16", ":")):
                points = [
                    statistics.median(ratio(r, name) for r in ledger.results(runs))
                    for runs in (runs_of(model, size, trained) for trained in TRAINED)
                ]
                label = f"{name}, batch {size}"
                axis.plot(range(len(TRAINED)), points, style, marker="o", color=colour, label=label)
        axis.set_xticks(range(len(TRAINED)), [str(trained) for trained in TRAINED])
        axis.set_ylim(0.8, 5.0)
        axis.set_yscale("log")
        axis.set_yticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
        axis.minorticks_off()
        axis.set_xlabel("steps before the weights are fixed")
        axis.set_title(model, fontsize=9)
    axes[0][0].set_ylabel("rows' value over the true one")
    axes[0][0].legend(fontsize=7)
    drawn.savefig(path, dpi=110)


PART = Part(title="Batch normalization by rows", find=find, draw=draw, spots=True, spot_seconds=10)
