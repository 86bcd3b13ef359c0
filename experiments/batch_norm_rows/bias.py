"""How far are rows' shares, and pairs of steps, off under batch normalization?

Weights are held fixed after some steps. Batches are then drawn anew, with replacement, and each
gives its gradient and, in the same backward, the variance of one sample by its rows' shares. The
truth is the variance of the batches' gradients times the batch size, and the squared norm of their
mean without its noise, both for batches of this size. A ratio is the estimate over the true value.
AdaScale's gain is that of the batch over batches of a 4th or a 16th of it.

`lb.watch` compares pairs of consecutive steps in such models. From the same weights and the same
momentum, two steps are made many times, each time with other samples. Mean variance and mean
squared norm of these pairs give noise scale and gain. The step between the two gradients has the
learning rate of the training (0.05, with momentum 0.9), or a tenth of it. The weights and the
momentum are those of the training at 0.05 in both. After 0 steps there is no momentum yet.

An estimate may serve decisions if noise scale and gains are within 15 % in every model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.batch_norm_rows.cells import (
    BATCH_SIZES,
    ROWS,
    SEEDS,
    TRAINED,
    WAYS,
    Cells,
    measured,
)
from experiments.batch_norm_rows.setup import MODELS, QUANTITIES
from experiments.lab.findings import Findings, mean, shown
from experiments.lab.ledger import Ledger
from experiments.lab.part import Part

BAR = 0.15
"""How far an estimate may be off to serve decisions."""

NULL = "MLP without normalization"
"""The model whose rows are examples, so that every ratio is 1 up to the noise of the draws."""

IN_CELLS = ("noise scale", "gain 16")
"""What the table of cells shows of each way besides the variance."""

ALL = "**all with batch normalization**"

CUT = {
    "ResNet-8 at 28 x 28 and with 16 channels": "images are halved and it has 8, for the time",
    "pairs along one run": "the truth would have to be measured at the weights of each pair",
    "ImageNet-sized models": "this machine has no accelerator",
}
"""What is not measured -> why."""


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    findings.text += __doc__.strip().split("\n\n")[1:]
    cells = measured(ledger)
    rows: list[Sequence[str]] = []
    for (model, size, trained), seeds in cells.items():
        columns = []
        for way in WAYS:
            average = mean([seed.ratio("variance", way) for seed in seeds])
            columns.append(shown(average, ".2f"))
            cell = f"{model}, batch {size}, {trained} steps"
            findings.add(f"{cell}: {_of('variance', way)}", average, least=0.15)
        for name in IN_CELLS:
            columns += [_shown([seed.ratio(name, way) for seed in seeds]) for way in WAYS]
        true = statistics.median(seed.truth.told.notes["true noise scale"] for seed in seeds)
        rows.append((model, str(size), str(trained), _scale(true), *columns))
    findings.text.append(
        f"{SEEDS} seeds: the mean with its 95 % interval for the variance, else the median. "
        "'No signal' is a squared norm that is not positive, so that the noise scale is infinite."
    )
    names = [f"{name}, {way}" for name in ("variance", *IN_CELLS) for way in WAYS]
    findings.table(("model", "batch", "steps", "true noise scale", *names), rows)
    _summary(findings, cells)
    findings.text.append(
        "Rows count what batch normalization cancels: within a channel the gradients of its input "
        "add up to 0, and so do their products with the normalized input. A bias before it has no "
        "gradient at all, but each of its rows has a share."
    )
    findings.text.append(
        "Pairs of steps count the change of the gradient between the two steps as noise, and so "
        "does the part of the first batch's noise that comes back in the second gradient, since "
        "the step followed it. Both lower the squared norm if the loss falls along the step."
    )
    findings.leave_out(CUT)
    return findings


def _summary(findings: Findings, cells: Cells) -> None:
    """Median, range and the bar, over all cells and seeds of each model."""
    findings.text.append("## All cells and seeds of a model")
    groups = {model: [(model, trained) for trained in TRAINED] for model in MODELS}
    others = [model for model in MODELS if model != NULL]
    for trained in TRAINED:
        groups[f"with batch normalization, after {trained} steps"] = [(m, trained) for m in others]
    groups[ALL] = [(model, trained) for model in others for trained in TRAINED]
    rows: list[Sequence[str]] = []
    for name in ("variance", *QUANTITIES[2:]):
        for group, members in groups.items():
            of_ways = []
            for way in WAYS:
                each = [
                    value
                    for (model, _, trained), seeds in cells.items()
                    if (model, trained) in members
                    for seed in seeds
                    if not math.isnan(value := seed.ratio(name, way))
                ]
                of_ways.append(_row(each))
                if group == ALL:
                    _expect(findings, _of(name, way), each)
            rows.append((name, group, *of_ways))
    header = (f"{way}: median, range, within {BAR:.0%}" for way in WAYS)
    findings.table(("ratio", "model", *header), rows)


def _expect(findings: Findings, name: str, values: Sequence[float]) -> None:
    findings.add(f"median {name}", statistics.median(values), least=0.2)
    findings.add(f"least {name}", min(values), least=0.2)
    findings.add(f"greatest {name}", max(values), least=0.8)
    inside = sum(abs(value - 1) <= BAR for value in values) / len(values)
    findings.add(f"within the bar: {name}", inside, least=0.1)


def _of(name: str, way: str) -> str:
    return name if way == ROWS else f"{name}, {way}"


def _row(values: Sequence[float]) -> str:
    inside = sum(abs(value - 1) <= BAR for value in values)
    low, high = (_one(one) for one in (min(values), max(values)))
    return f"{_one(statistics.median(values))}, {low} to {high}, {inside} of {len(values)}"


def _one(value: float) -> str:
    return "no signal" if math.isinf(value) else f"{value:.2f}"


def _scale(value: float) -> str:
    return f"{value:.0f}" if value > 0.0 else "not shown"


def _shown(values: Sequence[float]) -> str:
    clear = [value for value in values if not math.isnan(value)]
    return _one(statistics.median(clear)) if clear else "not shown"


def draw(ledger: Ledger, path: Path) -> None:
    from experiments.lab.draw import COLOURS, figure

    cells = measured(ledger)
    drawn, axes = figure(rows=len(WAYS), columns=len(MODELS), width=2.9, height=2.5)
    for row, way in zip(axes, WAYS, strict=True):
        for axis, model in zip(row, MODELS, strict=True):
            axis.axhspan(1 - BAR, 1 + BAR, color=COLOURS[3], alpha=0.2, linewidth=0)
            for colour, size in zip(COLOURS[1:], BATCH_SIZES, strict=False):
                for name, style in (("variance", "-"), ("gain 16", ":")):
                    points = [
                        statistics.median(seed.ratio(name, way) for seed in cells[model, size, at])
                        for at in TRAINED
                    ]
                    label = f"{name}, batch {size}"
                    axis.plot(
                        range(len(TRAINED)), points, style, marker="o", color=colour, label=label
                    )
            axis.set_xticks(range(len(TRAINED)), [str(trained) for trained in TRAINED])
            axis.set_ylim(0.8, 14.0)
            axis.set_yscale("log")
            axis.set_yticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
            axis.minorticks_off()
        row[0].set_ylabel(f"{way}: estimate over truth")
    for axis, model in zip(axes[0], MODELS, strict=True):
        axis.set_title(model, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("steps before the weights are fixed")
    axes[0][0].legend(fontsize=7)
    drawn.savefig(path, dpi=100)


PART = Part(
    title="Batch normalization by rows and by pairs of steps",
    find=find,
    draw=draw,
    spots=True,
    spot_seconds=10,
)
