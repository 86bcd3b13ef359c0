"""Find the critical batch size of one workload by several methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import Budget
from largebatch.workbench.amounts import parse_length
from largebatch.workbench.runs.distributed import Process, process_group
from largebatch.workbench.runs.options import length_of
from largebatch.workbench.studies.critical.branches import branches, window_of
from largebatch.workbench.studies.critical.noise import noise
from largebatch.workbench.studies.critical.result import Critical
from largebatch.workbench.studies.critical.settings import (
    CriticalMethod,
    Settings,
    Watcher,
    methods_of,
)
from largebatch.workbench.studies.critical.study import Study, TrainingCost
from largebatch.workbench.studies.critical.sweep import rough_samples, sweep
from largebatch.workbench.studies.critical.values import Answer
from largebatch.workbench.workloads import Workload, load
from largebatch.workbench.workloads.data import size

RUNS: Mapping[CriticalMethod, Callable[[Study, Settings, Watcher | None], Answer]] = {
    "noise": noise,
    "branches": branches,
    "sweep": sweep,
}


def critical(
    workload: Workload | str,
    *,
    by: Iterable[str] = ("all",),
    budget: str | None = None,
    settings: Settings | None = None,
    watcher: Watcher | None = None,
) -> Critical:
    """Find the critical batch size of a workload and return the same result on every rank.

    Under torchrun, the processes share each batch.

    >>> from largebatch import workbench
    >>> found = workbench.critical("digits", by=["noise"], budget="40steps")
    >>> found.base_batch_size, [answer.method for answer in found.answers]
    (16, ['noise'])

    Args:
        workload: Workload, or its name as for `workloads.load`.
        by: Names of methods: "noise", "branches", "sweep" or "all". One text can hold several
            names, separated by commas.
        budget: Length of the base run, such as "5ep". By default, the run has the workload's number
            of epochs.
        settings: Seeds, points, doublings, tolerance and target loss of the study.
        watcher: Object that shows the progress on the first rank.

    Raises:
        ValueError: A method is unknown, or the budget is too short for a method. Methods and budget
            are checked before any training.
        NotFinite: The run of the method "noise" diverged.
    """
    methods = methods_of(by)
    settings = settings or Settings()
    workload = load(workload) if isinstance(workload, str) else workload
    if budget is not None:
        parse_length(budget)
    with process_group() as process:
        study = _study(workload, budget, process)
        _check(study, methods, settings)
        watcher = watcher if process.leader else None
        if watcher is not None:
            watcher(samples_to_train(study, methods, settings))
        answers = tuple(RUNS[method](study, settings, watcher) for method in methods)
    _, optimizer = workload.fresh(seed=settings.seed)
    return Critical(
        name=workload.name,
        optimizer=type(optimizer).__name__,
        base_batch_size=workload.base_batch_size,
        base_lr=workload.base_lr,
        budget_samples=study.budget,
        ranks=process.ranks,
        answers=answers,
    )


def samples_to_train(study: Study, methods: Iterable[CriticalMethod], settings: Settings) -> str:
    """Return a sentence that names the number of samples that each method trains on."""
    parts = []
    for method in methods:
        if method == "noise":
            parts.append(f"noise {study.budget:,}")
        elif method == "branches":
            window, doublings = _window(study, settings)
            each = study.budget + settings.points * doublings * window
            parts.append(f"branches {settings.seeds * each:,}")
        else:
            parts.append(f"sweep roughly {rough_samples(study, settings):,}")
    return f"Number of samples to train {study.workload.name} on: {', '.join(parts)}."


def _study(workload: Workload, budget: str | None, process: Process) -> Study:
    data = workload.data()
    length = length_of(workload, budget)
    assert not isinstance(length, Budget), "a text or the workload's epochs"
    base = workload.base_batch_size
    steps = length.base_steps(dataset_size=size(data.train), base_batch_size=base)
    return Study(
        workload=workload,
        data=data,
        process=process,
        budget=round(steps * base),
        spent=TrainingCost(),
    )


def _window(study: Study, settings: Settings) -> tuple[int, int]:
    return window_of(
        base=study.base, budget=study.budget, points=settings.points, doublings=settings.doublings
    )


def _check(study: Study, methods: Iterable[CriticalMethod], settings: Settings) -> None:
    """Raise an error if a requested method cannot give an answer.

    Raises:
        ValueError: The budget is smaller than one batch or too short for the branches, there are
            more ranks than samples in a batch, or the target is reached before the first step.
        LargeBatchError: The workload has no validation samples.
    """
    if study.budget < study.base:
        raise ValueError(
            f"The budget is {study.budget:,} samples, but one batch of {study.workload.name} has "
            f"{study.base:,} samples. Pass a larger budget: budget='{100 * study.base}'."
        )
    if study.process.ranks > study.base:
        raise ValueError(
            f"The base batch has {study.base} samples, but {study.process.ranks} processes share "
            "it, and each process needs at least one sample. Start fewer processes: torchrun "
            f"--nproc-per-node {study.base}"
        )
    if not size(study.data.validation):
        raise LargeBatchError(
            f"The workload {study.workload.name} has no validation samples, but 'critical' "
            "evaluates the validation loss. Return validation samples from the workload's data "
            "function: Data(train=..., validation=..., test=...)."
        )
    if "branches" in methods:
        _window(study, settings)
    if "sweep" in methods and settings.target is not None:
        model, _ = study.workload.fresh(seed=settings.seed, device=study.process.device)
        first = study.loss(model)
        if first <= settings.target:
            raise ValueError(
                f"The validation loss of {study.workload.name} is {first:.4g} before the first "
                f"step, which already reaches the target loss {settings.target:g}. Pass a lower "
                f"target loss: target={first / 4:.2g}."
            )
