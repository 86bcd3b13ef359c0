"""Compare methods over scales and seeds, at equal samples or at equal steps."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from largebatch.core.measurement import Budget
from largebatch.core.version import __version__
from largebatch.methods import METHODS, Method
from largebatch.workbench.amounts import Length, parse_length
from largebatch.workbench.runs.distributed import Process, alone
from largebatch.workbench.runs.method_optimizers import with_method_optimizer
from largebatch.workbench.runs.options import check_amounts
from largebatch.workbench.runs.results import Report, RunResult
from largebatch.workbench.runs.run import run
from largebatch.workbench.runs.run_spec import RunSpec
from largebatch.workbench.studies.compare.contenders import (
    ANY,
    At,
    Contender,
    contenders,
    same_at_scale_one,
)
from largebatch.workbench.studies.compare.store import ComparisonSettings, RunKey, RunStore
from largebatch.workbench.studies.compare.summary import (
    LOSS,
    ComparisonRow,
    comparison_rows,
    margin_of,
)
from largebatch.workbench.workloads import Data, Workload, load
from largebatch.workbench.workloads.data import size

MARGIN = 0.1
"""Largest accepted increase of the validation loss, as a fraction of the loss at scale 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Hold the result of a comparison: its rows and its runs.

    Args:
        workload: Name of the workload.
        base_steps: Length T of the run at scale 1, in base steps.
        at: "equal-samples", or "equal-steps" if every method that does not measure its gain ran
            with a + after its name.
        margin: Largest accepted increase of the validation loss compared with scale 1, in units of
            the loss. None if all runs at scale 1 diverged.
        directory: Directory that holds the runs.
        found: Number of runs that were already in the directory.
        rows: One row for each scale and method.
        runs: Results of all runs.
    """

    workload: str
    base_steps: int
    at: str
    margin: float | None
    directory: str
    found: int
    rows: tuple[ComparisonRow, ...]
    runs: tuple[RunResult, ...]


def compare(
    workload: str | Workload,
    *,
    methods: Sequence[str] = ("adascale", "linear", "none"),
    scales: Sequence[int] = (1, 8, 32),
    seeds: int = 5,
    at: At = "equal-samples",
    budget: str | None = None,
    margin: float = MARGIN,
    out: str | os.PathLike[str] | None = None,
    progress: Report | None = None,
) -> Comparison:
    """Run every method at every scale with every seed, and summarize the runs.

    Runs that are already in the directory are not repeated, so calling the function again resumes
    an interrupted comparison. Methods, scales and seeds can be added in a later call. Scale 1 is
    always included. Methods that change nothing at scale 1 share one run per seed at scale 1. A
    diverged run is a result, not an error.

    >>> import tempfile
    >>> from largebatch import workbench
    >>> with tempfile.TemporaryDirectory() as out:
    ...     found = workbench.compare(
    ...         "digits", methods=["linear"], scales=[1], seeds=2, budget="5steps", out=out)
    >>> [(row.method, row.scale, row.runs) for row in found.rows]
    [('any', 1, 2)]

    Args:
        workload: Name of a workload, "package.module:factory", or a `Workload`.
        methods: Names of methods. A + after the name of a method that does not measure its gain
            stretches the run of the method; see `contenders`.
        scales: Batch sizes as multiples S = B / B0 of the base batch size, each at least 1.
        seeds: Number of seeds, at least 1. The seeds are 0, 1, 2 and so on.
        at: "equal-samples", or "equal-steps" to add a + to the name of every method that does not
            measure its gain.
        budget: Length of the run at scale 1, such as "5ep", rounded up to whole base steps. By
            default, the run has the workload's number of epochs.
        margin: Largest accepted increase of the validation loss, as a fraction of the loss at
            scale 1.
        out: Directory for the runs. The default directory is runs/compare-<digest of the settings>.
        progress: Function that is called after each step of each run.

    Raises:
        ValueError: A name is unknown, an amount is invalid, or the directory holds runs with other
            settings.
        LargeBatchError: The data are missing, or a stored run is corrupted.
    """
    workload = load(workload) if isinstance(workload, str) else workload
    field = contenders(methods, at=at)
    _check(scales=scales, seeds=seeds, margin=margin)
    length = _length(workload, budget)
    process = alone("compare")
    data = workload.data()
    workload = replace(workload, data=lambda: data)
    shared = _shared(workload, data, length)
    directory = Path(out) if out is not None else Path("runs") / f"compare-{shared.digest}"
    larger = sorted(set(scales) - {1})
    runner = _Runner(
        workload=workload,
        process=process,
        store=RunStore(directory, shared),
        base_steps=shared.base_steps,
        total=seeds * (len(_at_scale_one(field)) + len(larger) * len(field)),
        report=progress,
    )
    runs = [one for seed in range(seeds) for one in runner.seed(seed, field, larger)]
    order = [c.name for c in field]
    absolute = margin_of(runs, fraction=margin)
    return Comparison(
        workload=workload.name,
        base_steps=shared.base_steps,
        at=at,
        margin=absolute,
        directory=str(directory),
        found=runner.found,
        rows=comparison_rows(runs, order=order, margin=absolute),
        runs=tuple(runs),
    )


def _shared(workload: Workload, data: Data, length: Length) -> ComparisonSettings:
    """Return the settings that all runs of a comparison share."""
    dataset_size = size(data.train)
    base_steps = length.base_steps(
        dataset_size=dataset_size, base_batch_size=workload.base_batch_size
    )
    return ComparisonSettings(
        workload=workload.name,
        summary=workload.summary,
        base_batch_size=workload.base_batch_size,
        micro_batch_size=workload.micro_batch_size,
        lr=workload.base_lr,
        base_steps=math.ceil(base_steps),
        dataset_size=dataset_size,
        data={name: str(fact) for name, fact in data.facts.items()},
        largebatch=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
    )


@dataclass(slots=True, kw_only=True)
class _Runner:
    """Make or load the runs of a comparison. Mutable: counts the runs that it made and loaded."""

    workload: Workload
    process: Process
    store: RunStore
    base_steps: int
    total: int
    report: Report | None
    done: int = 0
    found: int = 0

    def seed(
        self, seed: int, field: Sequence[Contender], scales: Sequence[int]
    ) -> Iterator[RunResult]:
        """Yield all runs of one seed, from scale 1 on; methods that measure a gain run first."""
        whole = Budget(base_steps=self.base_steps)
        for name, method in _at_scale_one(field).items():
            cell = RunKey(method=name, scale=1, seed=seed, budget=whole)
            yield self._one(cell, method)
        samples = Budget(samples=self.base_steps * self.workload.base_batch_size)
        for scale in scales:
            steps: Budget | None = None
            for one in sorted(field, key=lambda c: not c.method.own_clock):
                budget = whole if one.method.own_clock else steps if one.stretched else samples
                if budget is None:
                    self._skip(f"{one.name} at scale {scale}, seed {seed}")
                    continue
                cell = RunKey(method=one.name, scale=scale, seed=seed, budget=budget)
                result = self._one(cell, one.method)
                if one.method.own_clock and steps is None and not result.diverged:
                    steps = Budget(steps=result.steps)
                yield result

    def _one(self, cell: RunKey, method: Method) -> RunResult:
        self.done += 1
        there = self.store.get(cell)
        if there is not None:
            self.found += 1
            return there
        if self.found == self.done - 1 and self.found and self.report is not None:
            self.report(f"loaded {self.found} of {self.total} runs from {self.store.directory}")
        workload, _ = with_method_optimizer(self.workload, method.optimizer)
        spec = RunSpec(
            workload=workload,
            rule=method.rule(),
            method=cell.method,
            scale=cell.scale,
            budget=cell.budget,
            seed=cell.seed,
        )
        name = "" if cell.method == ANY else f"{cell.method}, "
        label = f"run {self.done} of {self.total}: {name}scale {cell.scale}, seed {cell.seed}"
        result = run(spec, process=self.process, report=self.report, label=label)
        _check_metrics(result)
        self.store.add(result)
        return result

    def _skip(self, what: str) -> None:
        self.done += 1
        if self.report is not None:
            self.report(
                f"the run of {what} is skipped, because the method that sets the number of steps "
                "diverged"
            )


def _at_scale_one(field: Sequence[Contender]) -> dict[str, Method]:
    """Return the methods to run at scale 1 by name; one run serves all methods that change nothing.

    The name of the shared run is "any".
    """
    own = {c.method.name: c.method for c in field if not same_at_scale_one(c.method)}
    return {ANY: METHODS["none"], **own}


def _check(*, scales: Sequence[int], seeds: int, margin: float) -> None:
    for scale in scales:
        check_amounts(scale=scale)
    if seeds < 1:
        raise ValueError(
            f"The number of seeds must be at least 1, but seeds={seeds} was given. Pass seeds=5."
        )
    if not margin >= 0.0:
        raise ValueError(
            "The margin is a fraction of the loss at scale 1 and must be at least 0, but "
            f"margin={margin} was given. Pass margin={MARGIN}."
        )


def _check_metrics(result: RunResult) -> None:
    if not result.diverged and LOSS not in result.validation:
        raise ValueError(
            f"The metrics of the workload {result.workload} are {sorted(result.validation)}, but "
            f"compare needs the metric {LOSS!r}. Return {LOSS!r} from the metrics function, or "
            "remove the function: Workload(..., metrics=None)."
        )


def _length(workload: Workload, budget: str | None) -> Length:
    if budget is None:
        return Length(amount=workload.budget_epochs, unit="epochs")
    return parse_length(budget)
