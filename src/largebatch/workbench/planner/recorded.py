"""Fit a noisy quadratic to a recorded run, for a plan.

    mean loss, lr, batch size and noise scale of each section of the record
    ->  `fit_quadratic`  ->  model

The sections have equal lengths in the logarithm of the step, because the loss falls ever more
slowly. The first 2 % of the steps are one section, because the loss in the first steps is far from
its minimum and not close to a quadratic.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.core.errors import RecordError
from largebatch.core.measurement import noise_scale
from largebatch.core.not_enough import NotEnough
from largebatch.record import Step, read_record
from largebatch.workbench.planner.model import QuadraticModel
from largebatch.workbench.quadratic import QuadraticFit, fit_quadratic

PARTS = 20
"""Largest number of sections of a record."""

FIRST = 0.02
"""Fraction of the steps that forms the first section."""


class NotEnoughSignal(RecordError):
    """Raised if a record is too short or too noisy to plan from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Hold the values of one section of a record.

    Args:
        steps, samples: Number of steps and samples from the start of the run to the middle of the
            section.
        loss: Mean loss over the section.
        batch_size: Mean batch size from the middle of the previous section to the middle of this
            section, in samples.
        lr: Mean learning rate from the middle of the previous section to the middle of this
            section.
        noise_scale: Gradient noise scale of the section, in samples; NaN if it was not measured.
        variance: Mean variance of one sample's gradient over the section; NaN if it was not
            measured.
    """

    steps: int
    samples: int
    loss: float
    batch_size: float
    lr: float
    noise_scale: float
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFit:
    """Hold the model that was fitted to a record.

    Args:
        model: Fitted quadratic.
        base_batch_size: Base batch size B0 of the record, in samples.
        fit: Description of the fitted quadratic and of its distance from the record.
    """

    model: QuadraticModel
    base_batch_size: int
    fit: str


def fit_record(path: str | os.PathLike[str]) -> RecordFit:
    """Return the noisy quadratic that fits a recorded run best.

    Raises:
        RecordError: The file is corrupted.
        NotEnoughSignal: The record is too short, lacks losses or noise measurements, or does not
            follow a power law. The message names the reason.
    """
    record = read_record(path)
    steps = [step for step in record.steps if step.seen.finite]
    factor = sgd_factor(record.header.get("optimizer"))
    found = fit_of(entries_of(steps), factor=factor)
    if isinstance(found, NotEnough):
        raise NotEnoughSignal(
            f"The record {path} cannot be fitted: {found}. Record a longer run of a method that "
            "measures the noise, such as adascale. To plan from a noise scale without a record, "
            "pass noise_scales=[4000]"
        )
    base_lr = max(step.seen.base_lr for step in steps)
    model = QuadraticModel(
        spectrum=found.spectrum,
        lr=base_lr * (factor or 1.0),
        seen=max(1.0, *(_rate(step) / base_lr for step in steps)),
    )
    return RecordFit(model=model, base_batch_size=steps[-1].seen.base_batch_size, fit=str(found))


def sgd_factor(optimizer: object) -> float | None:
    """Return the effective learning rate of SGD with momentum as a multiple of its learning rate.

    The formula is (1 - dampening) / (1 - momentum). The result is None if the record's header does
    not name SGD in the form that `Controller` writes.

    >>> sgd_factor({"name": "SGD", "momentum": 0.9, "dampening": 0.0})
    10.000000000000002
    """
    if not isinstance(optimizer, Mapping) or optimizer.get("name") != "SGD":
        return None
    momentum, dampening = (optimizer.get(name, 0.0) for name in ("momentum", "dampening"))
    if not 0.0 < momentum < 1.0:
        return 1.0 if momentum == 0.0 else None
    return float((1.0 - dampening) / (1.0 - momentum))


def fit_of(entries: Sequence[Entry], *, factor: float | None) -> QuadraticFit | NotEnough:
    """Return the quadratic that fits the sections of a record best, or the reason why none fits.

    Args:
        entries: Sections of the record.
        factor: Factor on the learning rates, see `sgd_factor`. If the factor is None, the measured
            variance is not used, because the optimizer is not SGD and the fitted quadratic needs
            the variance of SGD's gradient.
    """
    if any(entry.loss <= 0.0 for entry in entries):
        return NotEnough(reason="some losses are not above 0", needed="losses that are all above 0")
    variances = [entry.variance for entry in entries if math.isfinite(entry.variance)]
    known = factor is not None and len(variances) > 0
    return fit_quadratic(
        steps=[entry.steps for entry in entries],
        samples=[entry.samples for entry in entries],
        losses=[entry.loss for entry in entries],
        batch_sizes=[entry.batch_size for entry in entries],
        lrs=[entry.lr * (factor or 1.0) for entry in entries],
        noise_scales=[entry.noise_scale for entry in entries],
        variance=math.fsum(variances) / len(variances) if known else None,
    )


def entries_of(steps: Sequence[Step], *, parts: int = PARTS) -> list[Entry]:
    """Split a record into sections and return their values.

    Sections without a loss, or before the first learning rate above 0, are left out.

    Args:
        steps: Steps of the run, all with finite values.
        parts: Largest number of sections; a short record has fewer.
    """
    if not steps:
        return []
    first = max(1.0, FIRST * len(steps))
    edges = np.unique(np.geomspace(first, len(steps) + 1, parts + 1).round().astype(int)) - 1
    entries: list[Entry] = []
    before = 0
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        middle = max((start + stop) // 2, before + 1)
        since, part = steps[before:middle], steps[start:stop]
        lr = math.fsum(map(_rate, since)) / len(since)
        losses = [step.seen.loss for step in part if step.seen.loss is not None]
        if lr <= 0.0 or not losses:
            continue
        samples = sum(step.seen.batch_size for step in since)
        variance, scale = _noise(part)
        entries.append(
            Entry(
                steps=middle,
                samples=samples + (entries[-1].samples if entries else 0),
                loss=math.fsum(losses) / len(losses),
                batch_size=samples / len(since),
                lr=lr,
                noise_scale=scale,
                variance=variance,
            )
        )
        before = middle
    return entries


def _rate(step: Step) -> float:
    return step.seen.base_lr * step.decision.lr_multiplier


def _noise(part: Sequence[Step]) -> tuple[float, float]:
    """Return (variance, noise scale) of a section.

    The variance and the noise scale are NaN if nothing was measured, or if the measured noise scale
    is not finite and above 0.
    """
    known = [step.seen.moments for step in part if step.seen.moments is not None]
    if not known:
        return math.nan, math.nan
    variance = math.fsum(moments.variance for moments in known) / len(known)
    sqnorm = math.fsum(moments.sqnorm for moments in known) / len(known)
    found = noise_scale(variance=variance, sqnorm=sqnorm)
    if not (variance > 0.0 and 0.0 < found < math.inf):
        return math.nan, math.nan
    return variance, found
