"""Build the tables of the results of `train`, `compare`, `doctor` and `replay`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from largebatch.analysis.student import Mean
from largebatch.checks.finding import LEVELS, Level
from largebatch.methods import METHODS
from largebatch.workbench.cli.plain_table import plain_table
from largebatch.workbench.reports.replay import Replayed, ReplayedStep
from largebatch.workbench.runs.doctor import Diagnosis
from largebatch.workbench.runs.results import Metrics, RunResult
from largebatch.workbench.studies.compare.compare import Comparison
from largebatch.workbench.studies.compare.contenders import ANY
from largebatch.workbench.studies.compare.summary import LOSS, ComparisonRow

Column = tuple[str, Callable[[ComparisonRow], str]]


def doctor_table(result: Diagnosis) -> RenderableType:
    """Return a table of the findings, the most severe first, with reasons and remedies."""
    table = plain_table("level", "check", "finding")
    findings = result.check_up.worst_first
    for finding in findings:
        cell = Text(finding.seen)
        if finding.why:
            cell.append(f" {finding.why}")
        if finding.remedy:
            cell.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(Text(finding.level, style=STYLES[finding.level]), finding.name, cell)
    title = (
        f"{result.workload}: {result.method}, scale {result.scale}, batch {result.batch_size} "
        f"on {result.ranks} process(es)"
    )
    counts = Counter(finding.level for finding in findings)
    summed = ", ".join(f"{counts[level]} {level}" for level in reversed(LEVELS) if counts[level])
    return Group(Text(title), table, Text(summed))


STYLES: Mapping[Level, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}

ROWS = 40
"""Largest number of steps in a printed replay; --json prints all steps."""


REASON_WIDTH = 100
"""Smallest console width at which a replay shows the reasons of the decisions."""


def replay_table(result: Replayed, console: Console) -> RenderableType:
    """Return recorded and replayed decisions of all steps, or of `ROWS` evenly selected steps."""
    reasons = console.width >= REASON_WIDTH
    names = ["step", "samples", "batch size", "lr x", "replayed", "next batch", "replayed"]
    table = plain_table(*names, *(["reason"] if reasons else []))
    for step in _evenly(result.steps):
        table.add_row(
            str(step.step),
            str(step.samples),
            str(step.batch_size),
            f"{step.recorded_multiplier:.4g}",
            f"{step.multiplier:.4g}",
            str(step.recorded_next),
            str(step.next_batch_size),
            *([step.reason] if reasons else []),
        )
    count = len(result.steps)
    lines = [
        (
            "lr x: recorded factor on the base learning rate. next batch: recorded size of the "
            f"next batch. replayed: the same quantity as {result.method!r} decides it."
        ),
        f"The replayed decision equals the recorded decision in {result.same} of {count} steps.",
        *result.notes,
    ]
    if not reasons:
        lines.append(
            f"The reasons of the decisions are shown in a terminal of at least {REASON_WIDTH} "
            "columns and by --json."
        )
    if count > ROWS:
        lines.insert(0, f"The table shows {ROWS} of {count} steps; --json prints all of them.")
    return Group(Text(result.label), table, *map(Text, lines))


def _evenly(steps: Sequence[ReplayedStep]) -> list[ReplayedStep]:
    if len(steps) <= ROWS:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (ROWS - 1))] for i in range(ROWS)]


def train_table(result: RunResult) -> RenderableType:
    """Return the validation curve of a run as a table, followed by its totals."""
    names = list(result.validation)
    table = plain_table(
        "steps", "samples", "base steps", "train loss", *[f"val. {n}" for n in names]
    )
    for point in result.curve:
        table.add_row(
            str(point.step),
            str(point.samples),
            f"{point.base_steps:.0f}",
            f"{point.train_loss:.4f}",
            *[f"{point.validation[name]:.4f}" for name in names],
        )
    mean = result.samples / max(result.steps + result.skipped, 1)
    size = f"batch size {result.batch_size}"
    if mean > result.batch_size:
        size = f"mean batch size {mean:.0f}, first batch size {result.batch_size}"
    own_clock = result.method in METHODS and METHODS[result.method].own_clock
    worth = "mean gain" if own_clock else "mean scale"
    words = [
        f"{result.workload}: {result.method}, scale {result.scale}, seed {result.seed}",
        f"{result.steps} optimizer steps, {size}, {result.samples} samples, {result.seconds:.1f} s",
        (
            f"{worth} {result.mean_gain:.2f}: the run counts as {result.base_steps:.0f} base "
            "steps, which are steps of the base batch size"
        ),
        f"mean factor on the base learning rate: {result.mean_lr_multiplier:.2f}",
    ]
    if result.extra_samples:
        words.append(f"additional samples for measuring: {result.extra_samples}")
    if result.skipped:
        words.append(f"steps skipped because of non-finite values: {result.skipped}")
    words += [
        f"validation: {_metrics(result.validation)}",
        f"test: {_metrics(result.test)}",
    ]
    return Group(table, *[Text(line) for line in words])


def comparison_table(comparison: Comparison, console: Console) -> RenderableType:
    """Return one row per scale and method, followed by the meaning of the columns.

    If the columns do not fit into the width of the console, they are split into several tables.
    """
    rows = comparison.rows
    metrics = list(dict.fromkeys(name for row in rows for name in row.validation))
    tested = list(dict.fromkeys(name for row in rows for name in row.test))
    left: list[Column] = [("S", lambda r: str(r.scale)), ("method", _name)]
    right: list[Column] = [
        ("steps", lambda r: _whole(r.steps)),
        ("samples", lambda r: _whole(r.samples)),
        ("lr x", lambda r: f"{r.mean_lr_multiplier.value:.2f}" if r.mean_lr_multiplier else "-"),
        *[(f"val. {name}", _metric("validation", name)) for name in metrics],
        ("diverged", lambda r: f"{r.diverged} of {r.runs}"),
        ("loss - loss at S=1", lambda r: _interval(r.difference.get(LOSS))),
        ("quality", lambda r: r.quality or ""),
        *[(f"test {name}", _metric("test", name)) for name in tested],
    ]
    tables = _fitting(rows, left, right, console)
    return Group(*tables, *[Text(line, style="dim") for line in _notes(comparison)])


def _notes(comparison: Comparison) -> list[str]:
    seeds = len({run.seed for run in comparison.runs})
    margin = "The margin is unknown because all runs at scale 1 diverged."
    if comparison.margin is not None:
        margin = f"The margin is +{comparison.margin:.4f}."
    found = f"{comparison.found} of {len(comparison.runs)} runs were found"
    where = f"{found} in" if comparison.found else "The runs are kept in"
    return [
        (
            f"Values are means over {seeds} seed(s) ± half of the 95 % confidence interval. "
            "Differences are paired by seed. Diverged runs are left out of the means."
        ),
        (
            "quality compares the validation loss with the validation loss at scale 1. 'held': no "
            "run diverged, and the whole interval of the difference is at most the margin. "
            "'worse': a run diverged that did not diverge at scale 1, or the whole interval of the "
            "difference is above the margin. 'not shown': neither 'held' nor 'worse'; more seeds "
            f"may decide. {margin}"
        ),
        (
            "S: batch size / base batch size. lr x: mean factor on the base learning rate (for "
            "adascale, the mean gain). A method with + ran for as many steps as 'adascale'. Choose "
            "settings by the validation columns; report the test columns."
        ),
        f"{where} {comparison.directory}.",
    ]


def _metric(split: Literal["validation", "test"], name: str) -> Callable[[ComparisonRow], str]:
    def cell(row: ComparisonRow) -> str:
        return _spread((row.validation if split == "validation" else row.test).get(name))

    return cell


def _name(row: ComparisonRow) -> str:
    return "(any)" if row.method == ANY else row.method


def _whole(mean: Mean | None) -> str:
    return f"{mean.value:.0f}" if mean else "-"


def _spread(mean: Mean | None) -> str:
    if mean is None:
        return "-"
    if mean.high is None:
        return f"{mean.value:.4f}"
    return f"{mean.value:.4f} ±{mean.high - mean.value:.4f}"


def _interval(mean: Mean | None) -> str:
    if mean is None:
        return ""
    if mean.low is None:
        return f"{mean.value:+.4f}"
    return f"{mean.value:+.4f} [{mean.low:+.4f}, {mean.high:+.4f}]"


def _metrics(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _fitting(
    rows: Sequence[ComparisonRow], left: Sequence[Column], right: Sequence[Column], console: Console
) -> list[Table]:
    """Distribute the columns of `right` over tables that are at most as wide as the console."""
    unbounded = console.options.update(max_width=1000)
    groups: list[list[Column]] = [[]]
    for column in right:
        wider = _columns(rows, [*left, *groups[-1], column])
        if groups[-1] and console.measure(wider, options=unbounded).maximum > console.width:
            groups.append([])
        groups[-1].append(column)
    return [_columns(rows, [*left, *group]) for group in groups]


def _columns(rows: Sequence[ComparisonRow], columns: Sequence[Column]) -> Table:
    table = plain_table(*[name for name, _ in columns])
    before = None
    for row in rows:
        if before is not None and row.scale != before:
            table.add_section()
        before = row.scale
        table.add_row(*[cell(row) for _, cell in columns])
    return table
