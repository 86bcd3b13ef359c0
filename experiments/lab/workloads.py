"""The workloads of the experiments: those of the command line, and variants of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from experiments.lab.optimizers import OPTIMIZERS
from torch import nn

import largebatch.workbench.workloads as workloads
from largebatch.workbench.workloads import Data, Split, Workload
from largebatch.workbench.workloads.models import ByteTransformer

MOST = {1: 10_000, 2: 2**17}
"""Predictions by which a run is judged, by the dimensions of the targets: classes, or bytes."""

SHORT = 32
"""Bytes of a sequence of the narrow transformer."""

VARIANTS = (
    "digits-decay",
    "digits-short",
    "fashion-cnn-plain",
    "stdlib-narrow",
    "stdlib-narrow-sgd",
)
"""Workloads that only the experiments know."""


@cache
def workload(name: str) -> Workload:
    """A workload by its name, whose data is loaded once in a process; "fashion-cnn@16+lamb" is one
    with another base batch and another optimizer."""
    if "+" in name:
        base, _, optimizer = name.partition("+")
        found = replace(workload(base), name=name, optimizer=OPTIMIZERS[optimizer])
        if optimizer == "adamp":  # views each weight as a matrix, which channels last forbids
            found = replace(found, model=partial(_contiguous, found.model))
        return found
    if "@" in name:
        base, _, size = name.partition("@")
        return replace(workload(base), name=name, base_batch_size=int(size))
    if name == "digits-short":
        return replace(workloads.load("digits"), name=name)
    if name == "digits-decay":
        decayed = workloads.sgd(weight_decay=0.01)
        return replace(workloads.load("digits"), name=name, optimizer=decayed)
    if name == "fashion-cnn":
        found = workloads.load(name)
        return replace(found, model=partial(_channels_last, found.model))
    if name == "fashion-cnn-plain":
        found = workload("fashion-cnn")
        return replace(
            found,
            name=name,
            summary=found.summary.replace("SGD with momentum", "SGD without momentum"),
            optimizer=workloads.sgd(momentum=0.0),
            base_lr=10 * found.base_lr,
        )
    if name in ("stdlib-narrow", "stdlib-narrow-sgd"):
        found = workloads.load(name.replace("narrow", "transformer"))
        return replace(
            found,
            name=name,
            summary=found.summary.replace("0.5M", "0.14M"),
            model=partial(ByteTransformer, layers=2, width=64, heads=4, context=SHORT),
            data=partial(_shortened, found.data),
            base_lr=2 * found.base_lr,
        )
    return workloads.load(name)


def _shortened(load: Callable[[], Data]) -> Data:
    """The first bytes of each sequence."""
    whole = load()
    splits = {
        name: tuple(tensor[:, :SHORT].contiguous() for tensor in getattr(whole, name))
        for name in ("train", "validation", "test")
    }
    return Data(**splits, facts=whole.facts)


def _channels_last(model: Callable[[], nn.Module]) -> nn.Module:
    """A third faster on the processors that the records are from."""
    return model().to(memory_format=torch.channels_last)


def _contiguous(model: Callable[[], nn.Module]) -> nn.Module:
    return model().to(memory_format=torch.contiguous_format)


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
