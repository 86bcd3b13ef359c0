"""Summarize the runs of a comparison in one row per scale and method, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from largebatch.analysis.student import Mean, mean_of
from largebatch.workbench.runs.results import RunResult
from largebatch.workbench.studies.compare.contenders import ANY

Quality = Literal["held", "worse", "not shown"]

LOSS = "loss"
"""Name of the metric that decides the quality. A lower value is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """Summarize the runs of one method at one scale.

    Args:
        scale: Batch size as a multiple S of the base batch size.
        method: Name of the method. The name is "any" in runs at scale 1 that methods share.
        runs: Number of runs, diverged runs included. Means are taken over the runs that did not
            diverge.
        diverged: Number of diverged runs.
        steps: Mean number of optimizer steps, or None if all runs diverged.
        samples: Mean number of training samples, or None if all runs diverged.
        mean_gain: Mean of `RunResult.mean_gain`, or None if all runs diverged.
        mean_lr_multiplier: Mean of `RunResult.mean_lr_multiplier`, or None if all runs diverged.
        validation: Mean of each validation metric.
        difference: Mean difference of each validation metric from scale 1, over the seeds whose
            two runs both finished.
        quality: "held" if no run diverged and the upper bound of the difference in validation loss
            is at most the margin. "worse" if a run diverged whose run at scale 1 did not, or if
            the lower bound of the difference is above the margin. "not shown" if the runs do not
            decide between "held" and "worse". The quality is None in the row of the shared run at
            scale 1.
        test: Mean of each test metric. No setting is chosen by the test metrics.
    """

    scale: int
    method: str
    runs: int
    diverged: int
    steps: Mean | None
    samples: Mean | None
    mean_gain: Mean | None
    mean_lr_multiplier: Mean | None
    validation: Mapping[str, Mean]
    difference: Mapping[str, Mean]
    quality: Quality | None
    test: Mapping[str, Mean]


def margin_of(runs: Sequence[RunResult], *, fraction: float) -> float | None:
    """Return the given fraction of the mean validation loss at scale 1.

    The result is None if no run at scale 1 finished.
    """
    losses = [run.validation[LOSS] for run in runs if _is_base(run) and not run.diverged]
    return fraction * mean_of(losses).value if losses else None


def comparison_rows(
    runs: Sequence[RunResult], *, order: Sequence[str], margin: float | None
) -> tuple[ComparisonRow, ...]:
    """Return one row per scale and method, sorted by scale and then by the given order.

    Args:
        runs: Runs of one comparison.
        order: Names of the methods, in the order of the rows.
        margin: Largest accepted increase of the validation loss compared with scale 1, in units of
            the loss.
    """
    base = {run.seed: run for run in runs if _is_base(run)}
    groups: dict[tuple[int, int], list[RunResult]] = {}
    names = (ANY, *order)
    for run in runs:
        groups.setdefault((run.scale, names.index(run.method)), []).append(run)
    return tuple(_row(groups[key], base=base, margin=margin) for key in sorted(groups))


def differences(runs: Sequence[RunResult], others: Mapping[int, RunResult]) -> Mapping[str, Mean]:
    """Return the mean difference of each validation metric between runs with the same seeds.

    Pairs with a diverged run are left out.

    Args:
        runs: Runs to compare, one per seed.
        others: Runs that are subtracted, by seed.
    """
    pairs = [
        (run.validation, others[run.seed].validation)
        for run in runs
        if run.seed in others and not run.diverged and not others[run.seed].diverged
    ]
    if not pairs:
        return {}
    return {name: mean_of([a[name] - b[name] for a, b in pairs]) for name in pairs[0][0]}


def _row(
    runs: Sequence[RunResult], *, base: Mapping[int, RunResult], margin: float | None
) -> ComparisonRow:
    first = runs[0]
    finished = [run for run in runs if not run.diverged]
    difference = {} if _is_base(first) else differences(finished, base)
    return ComparisonRow(
        scale=first.scale,
        method=first.method,
        runs=len(runs),
        diverged=len(runs) - len(finished),
        steps=_mean([run.steps for run in finished]),
        samples=_mean([run.samples for run in finished]),
        mean_gain=_mean([run.mean_gain for run in finished]),
        mean_lr_multiplier=_mean([run.mean_lr_multiplier for run in finished]),
        validation=_means([run.validation for run in finished]),
        difference=difference,
        quality=None if _is_base(first) else _quality(runs, base, difference, margin),
        test=_means([run.test for run in finished]),
    )


def _quality(
    runs: Sequence[RunResult],
    base: Mapping[int, RunResult],
    difference: Mapping[str, Mean],
    margin: float | None,
) -> Quality:
    diverged = [run.seed for run in runs if run.diverged]
    if any(seed in base and not base[seed].diverged for seed in diverged):
        return "worse"
    loss = difference.get(LOSS)
    if diverged or margin is None or loss is None or loss.low is None or loss.high is None:
        return "not shown"
    if loss.high <= margin:
        return "held"
    return "worse" if loss.low > margin else "not shown"


def _is_base(run: RunResult) -> bool:
    return run.method == ANY


def _mean(values: Sequence[float]) -> Mean | None:
    return mean_of(values) if values else None


def _means(metrics: Sequence[Mapping[str, float]]) -> Mapping[str, Mean]:
    return {name: mean_of([m[name] for m in metrics]) for name in metrics[0]} if metrics else {}
