"""The workloads of the experiments: those of the command line, and variants of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import largebatch.workloads as workloads
from largebatch.workloads import Split, Workload

MOST = {1: 10_000, 2: 2**17}
"""Predictions by which a run is judged, by the dimensions of the targets: classes, or bytes."""

VARIANTS = {
    "fashion-cnn-plain": ("fashion-cnn", "without momentum"),
}
"""Name -> (workload, what is other about it)."""


@cache
def workload(name: str) -> Workload:
    """A workload by its name, whose data is loaded once in a process."""
    base, other = VARIANTS.get(name, (name, ""))
    found = workloads.load(base)
    if other == "without momentum":
        found = replace(
            found,
            name=name,
            summary=found.summary.replace("SGD with momentum", "SGD without momentum"),
            optimizer=workloads.sgd(momentum=0.0),
            base_lr=10 * found.base_lr,
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """What a run trains on, and by what it is judged.

    Args:
        train: all training samples.
        seen, validation, test: evenly spaced samples of each split, with at most `MOST`
            predictions, since looking at all of the text takes longer than a run.
    """

    train: Split
    seen: Split
    validation: Split
    test: Split


@cache
def data(name: str) -> Splits:
    """Its data, loaded once in a process."""
    whole = workload(name).data()
    return Splits(
        train=whole.train,
        seen=_thinned(whole.train),
        validation=_thinned(whole.validation),
        test=_thinned(whole.test),
    )


def _thinned(split: Split) -> Split:
    assert isinstance(split, tuple)
    targets = split[-1]
    every = -(-targets.numel() // MOST[targets.ndim])
    return tuple(tensor[::every] for tensor in split)
