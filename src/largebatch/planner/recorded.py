"""The noisy quadratic that a recorded run was like, for a plan.

    mean losses, rates, batches, noise scales of parts of the record  ->  `fit_quadratic`  ->  model

The parts are evenly long in the logarithm of the step, since the loss falls ever more slowly. The
first steps are one part: so far from its minimum no loss is a quadratic.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from largebatch.core.errors import RecordError
from largebatch.core.measurement import noise_scale
from largebatch.core.not_enough import NotEnough
from largebatch.planner.model import Model
from largebatch.record import Step, read_record
from largebatch.simulate.quadratic import QuadraticFit, fit_quadratic

PARTS = 20
"""Of a record."""

FIRST = 0.02
"""Of the steps, that are one part."""


class NotEnoughSignal(RecordError):
    """A record is too short or too noisy to plan from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A part of a record, told at its middle.

    Args:
        steps, samples: so far, at the middle.
        loss: mean over the part.
        batch_size: at the middle, in samples.
        lr: mean over the steps since the entry before.
        noise_scale: of the part, in samples; not a number where it was not measured.
        variance: of one sample's gradient, in the part's mean; not a number as well.
    """

    steps: int
    samples: int
    loss: float
    batch_size: int
    lr: float
    noise_scale: float
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What a plan takes from a record.

    Args:
        model: fitted to it.
        base_batch_size: B0, in samples.
        fit: how near it lies, in words.
    """

    model: Model
    base_batch_size: int
    fit: str


def fit_record(path: str | os.PathLike[str]) -> Fitted:
    """The noisy quadratic nearest to a recorded run.

    Raises:
        RecordError: a damaged file.
        NotEnoughSignal: a record without losses or measured noise, too short, or of no such law;
            what is missing is said.
    """
    record = read_record(path)
    steps = [step for step in record.steps if _tells(step)]
    if not steps:
        raise NotEnoughSignal(
            f"{path}: not enough signal: no step has a loss. Record a run with losses, of a method "
            "that measures: largebatch train WORKLOAD --method adascale --record FILE"
        )
    optimizer = record.header.get("optimizer")
    found = fit_of(entries_of(steps), factor=sgd_factor(optimizer))
    if isinstance(found, NotEnough):
        raise NotEnoughSignal(
            f"{path}: {found}. Record a longer run, of a method that measures: largebatch train "
            "WORKLOAD --method adascale --record FILE. Or plan from the noise scale alone, which "
            "largebatch report shows: --noise-scale 4000"
        )
    base_lr = max(step.seen.base_lr for step in steps)
    model = Model(
        spectrum=found.spectrum,
        lr=base_lr * (sgd_factor(optimizer) or 1.0),
        seen=max(1.0, *(_rate(step) / base_lr for step in steps)),
    )
    return Fitted(model=model, base_batch_size=steps[-1].seen.base_batch_size, fit=str(found))


def sgd_factor(optimizer: Mapping[str, Any] | None) -> float | None:
    """What a rate of SGD comes to with its momentum, (1 - dampening) / (1 - momentum); None for
    another optimizer, or one that the record does not name.

    >>> sgd_factor({"name": "SGD", "momentum": 0.9, "dampening": 0.0})
    10.000000000000002
    """
    if optimizer is None or optimizer.get("name") != "SGD":
        return None
    momentum = float(optimizer["momentum"])
    return (1.0 - float(optimizer["dampening"])) / (1.0 - momentum) if momentum else 1.0


def fit_of(entries: Sequence[Entry], *, factor: float | None) -> QuadraticFit | NotEnough:
    """The power law nearest to a record's entries, or what they lack.

    Args:
        entries: of the record.
        factor: on the rates, see `sgd_factor`; None where the variance is not in SGD's units.
    """
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
    """A record in parts; a part before the first rate above 0 is left out.

    Args:
        steps: each with a finite loss.
        parts: at most so many; a short record has fewer.
    """
    first = max(1.0, FIRST * len(steps))
    edges = np.unique(np.geomspace(first, len(steps) + 1, parts + 1).round().astype(int)) - 1
    entries: list[Entry] = []
    before = 0
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        middle = max((start + stop) // 2, before + 1)
        lr = math.fsum(map(_rate, steps[before:middle])) / (middle - before)
        if lr <= 0.0:
            continue
        part, seen = steps[start:stop], steps[middle - 1].seen
        variance, scale = _noise(part)
        entries.append(
            Entry(
                steps=seen.step + 1,
                samples=seen.samples + seen.batch_size,
                loss=math.fsum(step.seen.loss or 0.0 for step in part) / len(part),
                batch_size=seen.batch_size,
                lr=lr,
                noise_scale=scale,
                variance=variance,
            )
        )
        before = middle
    return entries


def _tells(step: Step) -> bool:
    seen = step.seen
    return seen.finite and seen.loss is not None and math.isfinite(seen.loss)


def _rate(step: Step) -> float:
    return step.seen.base_lr * step.decision.lr_multiplier


def _noise(part: Sequence[Step]) -> tuple[float, float]:
    """(variance, noise scale); not numbers where nothing was measured or noise hides the signal."""
    known = [step.seen.moments for step in part if step.seen.moments is not None]
    if not known:
        return math.nan, math.nan
    variance = math.fsum(moments.variance for moments in known) / len(known)
    sqnorm = math.fsum(moments.sqnorm for moments in known) / len(known)
    found = noise_scale(variance=variance, sqnorm=sqnorm)
    if not (variance > 0.0 and 0.0 < found < math.inf):
        return math.nan, math.nan
    return variance, found
