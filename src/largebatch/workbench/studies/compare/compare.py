"""`largebatch compare`: methods side by side, over scales and seeds, at equal samples or steps."""

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
"""Quality counts as held up to this fraction more validation loss than at scale 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A comparison's rows, and the runs behind them.

    Args:
        workload: by name.
        base_steps: T, the length of each run on its own clock.
        at: what fixed-clock methods without a + were given as much of as scale 1, or as AdaScale.
        margin: on the difference in validation loss, in its own unit; None if scale 1 diverged.
        directory: where the runs are kept.
        found: runs that were there already.
        rows: what the runs say.
        runs: all of them.
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
    """Runs every method at every scale with every seed, or takes up runs that are there.

    Scale 1 always runs, once a seed for all methods that do nothing there. A run that diverges is a
    result. An interrupted comparison goes on when it is called again; more methods, scales and
    seeds may be added.

    Args:
        workload: a name, "package.module:factory", or the workload itself.
        methods: names, a fixed-clock one with or without a +; see `contenders`.
        scales: S = B / B0, each at least 1.
        seeds: how many, from 0 on.
        at: "equal-samples", or "equal-steps" to put a + to every fixed-clock name.
        budget: length of the run at scale 1, such as "5ep", in whole base steps; None for the
            workload's.
        margin: fraction of scale 1's validation loss by which quality may differ.
        out: directory of the runs; by default runs/compare-<digest of the settings>.
        progress: called after each step of each run.

    Raises:
        ValueError: an unknown name, a bad amount, or a directory with runs of other settings.
        LargeBatchError: missing data, or a damaged line among the runs.
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
    """Makes the runs of a comparison, or finds them; counts both."""

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
        """All runs of one seed: scale 1, then each scale, own-clock methods first."""
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
            self.report(f"found {self.found} of {self.total} runs in {self.store.directory}")
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
            self.report(f"{what} is not run: the method whose steps it would take diverged there")


def _at_scale_one(field: Sequence[Contender]) -> dict[str, Method]:
    """Name -> method of what runs at scale 1: one for all methods that do nothing there."""
    own = {c.method.name: c.method for c in field if not same_at_scale_one(c.method)}
    return {ANY: METHODS["none"], **own}


def _check(*, scales: Sequence[int], seeds: int, margin: float) -> None:
    for scale in scales:
        check_amounts(scale=scale)
    if seeds < 1:
        raise ValueError(f"seeds is how many, at least 1; got {seeds}. Example: --seeds 5")
    if not margin >= 0.0:
        raise ValueError(f"The margin is a fraction of scale 1's loss, 0 or more; got {margin}.")


def _check_metrics(result: RunResult) -> None:
    if not result.diverged and LOSS not in result.validation:
        raise ValueError(
            f"{result.workload}'s metrics are {sorted(result.validation)}; runs are compared by "
            f"{LOSS!r}. Let the workload's metrics return it, too, or leave them out."
        )


def _length(workload: Workload, budget: str | None) -> Length:
    if budget is None:
        return Length(amount=workload.budget_epochs, unit="epochs")
    return parse_length(budget)
