"""Define the workloads of the experiments: those of the command line, and variants of them."""

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
"""Number of dimensions of the targets -> largest number of predictions in one evaluation.

Targets with one dimension are class labels; targets with two dimensions are bytes of text."""

SHORT = 32
"""Sequence length of the narrow transformer, in bytes."""

VARIANTS = (
    "digits-decay",
    "digits-short",
    "fashion-cnn-plain",
    "stdlib-narrow",
    "stdlib-narrow-sgd",
)
"""Workloads that exist only in the experiments, not in the command line."""


@cache
def workload(name: str) -> Workload:
    """Return a workload by its name; its data is loaded once per process.

    "fashion-cnn@16+lamb" is the workload fashion-cnn with base batch size 16 and the optimizer
    LAMB.
    """
    if "+" in name:
        base, _, optimizer = name.partition("+")
        found = replace(workload(base), name=name, optimizer=OPTIMIZERS[optimizer])
        if optimizer == "adamp":  # AdamP reshapes weights by view(), which fails for channels_last.
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
    """Return the data with each sequence cut to its first `SHORT` bytes."""
    whole = load()
    splits = {
        name: tuple(tensor[:, :SHORT].contiguous() for tensor in getattr(whole, name))
        for name in ("train", "validation", "test")
    }
    return Data(**splits, facts=whole.facts)


def _channels_last(model: Callable[[], nn.Module]) -> nn.Module:
    """Return the model in channels_last memory format, which makes training faster on a CPU."""
    return model().to(memory_format=torch.channels_last)


def _contiguous(model: Callable[[], nn.Module]) -> nn.Module:
    """Return the model in the default memory format."""
    return model().to(memory_format=torch.contiguous_format)


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Hold the samples that a run trains on, and the samples that it is evaluated on.

    Args:
        train: All training samples.
        seen: Evenly spaced training samples for the evaluation, with at most `MOST` predictions.
            Evaluating all of the text would take longer than a run.
        validation: Evenly spaced validation samples, with at most `MOST` predictions.
        test: Evenly spaced test samples, with at most `MOST` predictions.
    """

    train: Split
    seen: Split
    validation: Split
    test: Split


@cache
def data(name: str) -> Splits:
    """Return the data of a workload; it is loaded once per process."""
    whole = workload(name).data()
    return Splits(
        train=whole.train,
        seen=_thinned(whole.train),
        validation=_thinned(whole.validation),
        test=_thinned(whole.test),
    )


def _thinned(split: Split) -> Split:
    """Return evenly spaced samples of a split, with at most `MOST` predictions."""
    assert isinstance(split, tuple)
    targets = split[-1]
    every = -(-targets.numel() // MOST[targets.ndim])
    return tuple(tensor[::every] for tensor in split)
