"""The three ways to the critical batch on one workload, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import Budget
from largebatch.workbench.amounts import parse_length
from largebatch.workbench.runs.distributed import Place, joined
from largebatch.workbench.runs.train import length_of
from largebatch.workbench.studies.critical.branches import branches, window_of
from largebatch.workbench.studies.critical.lab import Lab, Spent
from largebatch.workbench.studies.critical.noise import noise
from largebatch.workbench.studies.critical.settings import Method, Settings, Watcher, methods_of
from largebatch.workbench.studies.critical.sweep import rough_samples, sweep
from largebatch.workbench.studies.critical.values import Answer, Critical
from largebatch.workbench.workloads import Workload, load
from largebatch.workbench.workloads.data import size

RUNS: Mapping[Method, Callable[[Lab, Settings, Watcher | None], Answer]] = {
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
    """The critical batch of a workload; the same values on every rank.

    Under torchrun the processes share each batch.

    Args:
        workload: or its name, as for `workloads.load`.
        by: names of methods, with commas between or not, or "all".
        budget: length of the base run, such as "5ep"; None for the workload's epochs.
        settings: seeds, points, doublings, tolerance, target; None for the defaults.
        watcher: is told of the progress, on the first rank.

    Raises:
        ValueError: an unknown method, or a budget too short for what is asked, before any training.
        NotFinite: the run of `noise` diverges.
    """
    methods = methods_of(by)
    settings = settings or Settings()
    workload = load(workload) if isinstance(workload, str) else workload
    if budget is not None:
        parse_length(budget)
    with joined() as place:
        lab = _lab(workload, budget, place)
        _check(lab, methods, settings)
        watcher = watcher if place.leader else None
        if watcher is not None:
            watcher(announcement(lab, methods, settings))
        answers = tuple(RUNS[method](lab, settings, watcher) for method in methods)
    _, optimizer = workload.fresh(seed=settings.seed)
    return Critical(
        name=workload.name,
        optimizer=type(optimizer).__name__,
        base_batch_size=workload.base_batch_size,
        base_lr=workload.base_lr,
        budget_samples=lab.budget,
        ranks=place.ranks,
        answers=answers,
    )


def announcement(lab: Lab, methods: Iterable[Method], settings: Settings) -> str:
    """What is going to be trained, in samples."""
    parts = []
    for method in methods:
        if method == "noise":
            parts.append(f"noise {lab.budget:,}")
        elif method == "branches":
            window, doublings = _window(lab, settings)
            each = lab.budget + settings.points * doublings * window
            parts.append(f"branches {settings.seeds * each:,}")
        else:
            parts.append(f"sweep roughly {rough_samples(lab, settings):,}")
    return f"Samples to train {lab.workload.name} on: {', '.join(parts)}."


def _lab(workload: Workload, budget: str | None, place: Place) -> Lab:
    data = workload.data()
    length = length_of(workload, budget)
    assert not isinstance(length, Budget), "a text or the workload's epochs"
    base = workload.base_batch_size
    steps = length.base_steps(dataset_size=size(data.train), base_batch_size=base)
    return Lab(workload=workload, data=data, place=place, budget=round(steps * base), spent=Spent())


def _window(lab: Lab, settings: Settings) -> tuple[int, int]:
    return window_of(
        base=lab.base, budget=lab.budget, points=settings.points, doublings=settings.doublings
    )


def _check(lab: Lab, methods: Iterable[Method], settings: Settings) -> None:
    """Refuses what could not be answered.

    Raises:
        ValueError: a budget smaller than one batch or too short for the branches, more ranks than
            samples, or a target that is reached before the first step.
        LargeBatchError: a workload without validation samples.
    """
    if lab.budget < lab.base:
        raise ValueError(
            f"A budget of {lab.budget:,} samples is smaller than one batch of "
            f"{lab.workload.name}, {lab.base:,}. Example: --budget {100 * lab.base}"
        )
    if lab.place.ranks > lab.base:
        raise ValueError(
            f"A batch of {lab.base} samples cannot be shared by {lab.place.ranks} ranks. Start "
            f"{lab.base} processes or fewer."
        )
    if not size(lab.data.validation):
        raise LargeBatchError(
            f"{lab.workload.name} has no validation samples to judge a loss on; give its data some."
        )
    if "branches" in methods:
        _window(lab, settings)
    if "sweep" in methods and settings.target is not None:
        model, _ = lab.workload.fresh(seed=settings.seed, device=lab.place.device)
        first = lab.loss(model)
        if first <= settings.target:
            raise ValueError(
                f"The validation loss of {lab.workload.name} is {first:.4g} before the first step, "
                f"so the target {settings.target:g} takes no training. Take a lower one: --target "
                f"{first / 4:.2g}"
            )
