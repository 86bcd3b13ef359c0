"""Measure the error of two noise estimates in models with batch normalization.

With batch normalization in training mode, an example has no gradient of its own. Two estimates of
the gradient noise from one backward pass per step are compared with the true noise. An estimate may
serve decisions if noise scale and gains are within 15 % of the true values in every model.

**Truth.** The weights are held fixed after 0, 50 or 300 training steps. Many random batches are
then drawn with replacement. The true variance of one sample's gradient is the variance of the batch
gradients times the batch size. The true squared norm is that of the mean gradient, corrected for
the noise of the mean. Variance and squared norm are measured for each batch size. A ratio is the
estimate divided by the true value.

**Rows.** The contribution of an example's rows to the gradient of each layer takes the place of the
example's gradient. Rows count a part of the gradient that batch normalization cancels. Within a
channel, the gradients of the input of batch normalization sum to 0, and so do their products with
the normalized input. A bias before batch normalization has no gradient at all, but each row
contributes to it.

**Pairs of steps.** `lb.watch` compares pairs of consecutive steps in such models. Here each pair
starts with the same weights and momentum and uses other samples. The mean variance and the mean
squared norm of the pairs give noise scale and gain. The step between the two gradients has the
learning rate of the training (0.05, with momentum 0.9), or a tenth of it. After 0 training steps
there is no momentum. Pairs of steps count the change of the gradient between the two steps as
noise. The first step also follows the noise of its own batch, and this noise influences the second
gradient. Both effects make the squared norm too small if the loss falls along the step.

"gain 4" and "gain 16" are AdaScale's gains of the batch size for a base batch size of a quarter or
a sixteenth of it. The first table has the mean over 3 seeds with its 95 % confidence interval for
the variance, and the median over the seeds for the other quantities. "No signal" means that the
estimated squared norm is not positive, so the estimated noise scale is infinite.
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
"""Largest relative error with which an estimate may serve decisions."""

NULL = "MLP without normalization"
"""Name of the model without batch normalization, for which the estimate from rows is unbiased."""

IN_CELLS = ("noise scale", "gain 16")
"""Quantities that the first table shows in addition to the variance."""

ALL = "**all with batch normalization**"
"""Name of the group of all models with batch normalization."""

WORDS = {
    ROWS: "rows",
    "pairs of steps": "pairs of steps",
    "pairs at lr / 10": "pairs of steps at a tenth of the learning rate",
}
"""Name of an estimate -> how the first paragraph names it."""

CUT = {
    "ResNet-8 on images of 28 x 28 and with 16 channels": "to save time, it has 8 channels and the "
    "images have half the width and height",
    "pairs of steps along one run": "the true noise would have to be measured at the weights of "
    "each pair",
    "models of ImageNet size": "the measurements were made without an accelerator",
}
"""What was not measured -> the reason."""


def find(ledger: Ledger) -> Findings:
    findings = Findings()
    cells = measured(ledger)
    findings.text.append(_answer(cells))
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
        true = statistics.median(seed.truth.extra.notes["true noise scale"] for seed in seeds)
        rows.append((model, str(size), str(trained), _scale(true), *columns))
    names = [f"ratio of {name}, {way}" for name in ("variance", *IN_CELLS) for way in WAYS]
    findings.text.append(f"## Ratio of the estimate to the true value, {SEEDS} seeds")
    findings.table(("model", "batch size", "training steps", "true noise scale", *names), rows)
    _summary(findings, cells)
    findings.method(__doc__.strip().split("\n\n", 1)[1])
    findings.leave_out(CUT)
    return findings


def _answer(cells: Cells) -> str:
    """Return the first paragraph of the page: the question, and what the tables show."""
    words = ["How accurate are two estimates of gradient noise in models with batch normalization?"]
    for way in WAYS:
        each = [
            value
            for (model, _, _), seeds in cells.items()
            if model != NULL
            for seed in seeds
            if not math.isnan(value := seed.ratio("noise scale", way))
        ]
        inside = sum(abs(value - 1) <= BAR for value in each)
        words.append(
            f"The noise scale from {WORDS[way]} is within {BAR:.0%} of the true one in {inside} of "
            f"{len(each)} measurements."
        )
    words.append(f"No estimate is within {BAR:.0%} in every model, so none may serve decisions.")
    return " ".join(words)


def _summary(findings: Findings, cells: Cells) -> None:
    """Add the table with median, range and number of small errors of each ratio, per model."""
    findings.text.append("## Ratio over all batch sizes, training steps and seeds of a model")
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
    """Add the numbers of one ratio to those that `expected.json` holds."""
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
    """Draw the ratios of variance and gain over the training steps, a column per model."""
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
        row[0].set_ylabel(f"{way}:\nestimate / true value")
    for axis, model in zip(axes[0], MODELS, strict=True):
        axis.set_title(model, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("training steps before")
    axes[0][0].legend(fontsize=7)
    drawn.savefig(path, dpi=100)


PART = Part(
    title="Errors of two noise estimates with batch normalization",
    find=find,
    draw=draw,
    spots=True,
    spot_seconds=10,
)
