"""What a comparison's runs say: a row for each scale and method, with intervals over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from largebatch.analysis.student import Mean, mean_of
from largebatch.workbench.runs.results import RunResult
from largebatch.workbench.studies.compare.contenders import ANY

Quality = Literal["held", "worse", "not shown"]

LOSS = "loss"
"""The metric by which quality is judged; lower is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """The runs of one method at one scale.

    Args:
        scale, method: which; the method is "any" at scale 1.
        runs: that were made; one that diverged is among them but in none of the means.
        diverged: of them.
        steps, samples, mean_gain, mean_lr_multiplier: as in `RunResult`; None if all diverged.
        validation: by metric.
        difference: to scale 1 by metric, over the seeds that both finished.
        quality: "held" if no run diverged and the whole interval of the difference in validation
            loss lies at or below the margin; "worse" if a run diverged where scale 1 did not, or
            the whole interval lies above the margin; else "not shown", which says nothing for or
            against the method. None at scale 1.
        test: by metric; nothing is chosen by it.
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
    """The margin on the validation loss: a fraction of its mean at scale 1; None without that."""
    losses = [run.validation[LOSS] for run in runs if _is_base(run) and not run.diverged]
    return fraction * mean_of(losses).value if losses else None


def comparison_rows(
    runs: Sequence[RunResult], *, order: Sequence[str], margin: float | None
) -> tuple[ComparisonRow, ...]:
    """A row for each scale and method, scales rising and methods in the order given.

    Args:
        runs: of a comparison.
        order: the methods' names.
        margin: how much a validation loss may exceed that of scale 1, in its own unit.
    """
    base = {run.seed: run for run in runs if _is_base(run)}
    groups: dict[tuple[int, int], list[RunResult]] = {}
    names = (ANY, *order)
    for run in runs:
        groups.setdefault((run.scale, names.index(run.method)), []).append(run)
    return tuple(_row(groups[key], base=base, margin=margin) for key in sorted(groups))


def differences(runs: Sequence[RunResult], others: Mapping[int, RunResult]) -> Mapping[str, Mean]:
    """Validation metrics of runs less those of other runs with the same seeds, where both finished.

    Args:
        runs: one a seed.
        others: by seed.
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
    lost = [run.seed for run in runs if run.diverged]
    if any(seed in base and not base[seed].diverged for seed in lost):
        return "worse"
    loss = difference.get(LOSS)
    if lost or margin is None or loss is None or loss.low is None or loss.high is None:
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
