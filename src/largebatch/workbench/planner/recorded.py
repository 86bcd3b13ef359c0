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

import numpy as np

from largebatch.core.errors import RecordError
from largebatch.core.measurement import noise_scale
from largebatch.core.not_enough import NotEnough
from largebatch.record import Step, read_record
from largebatch.workbench.planner.model import QuadraticModel
from largebatch.workbench.quadratic import QuadraticFit, fit_quadratic

PARTS = 20
"""Of a record."""

FIRST = 0.02
"""Of the steps, that are one part."""


class NotEnoughSignal(RecordError):
    """A record is too short or too noisy to plan from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A part of a record, with the values at its middle.

    Args:
        steps, samples: that were trained on so far, at the middle.
        loss: mean over the part.
        batch_size: mean over the steps since the entry before, in samples.
        lr: the same of the rate.
        noise_scale: of the part, in samples; not a number where it was not measured.
        variance: of one sample's gradient, in the part's mean; not a number as well.
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
    """What a plan takes from a record.

    Args:
        model: fitted to it.
        base_batch_size: B0, in samples.
        fit: how near it lies, in words.
    """

    model: QuadraticModel
    base_batch_size: int
    fit: str


def fit_record(path: str | os.PathLike[str]) -> RecordFit:
    """The noisy quadratic nearest to a recorded run.

    Raises:
        RecordError: a damaged file.
        NotEnoughSignal: a record without losses or measured noise, too short, or of no such law;
            what is missing is said.
    """
    record = read_record(path)
    steps = [step for step in record.steps if step.seen.finite]
    factor = sgd_factor(record.header.get("optimizer"))
    found = fit_of(entries_of(steps), factor=factor)
    if isinstance(found, NotEnough):
        raise NotEnoughSignal(
            f"{path}: {found}. Record a longer run of a method that measures the noise, such as "
            "adascale. Or plan from the noise scale alone. Pass noise_scales=[4000]"
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

    It is (1 - dampening) / (1 - momentum). The result is None for another optimizer, or if the
    record's header does not name it as `Controller` does.

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
    """The power law nearest to a record's entries, or what they lack.

    Args:
        entries: of the record.
        factor: on the rates, see `sgd_factor`; None where the variance is not in SGD's units.
    """
    if any(entry.loss <= 0.0 for entry in entries):
        return NotEnough(
            reason="some losses are not above 0", needed="a loss that is bounded by 0 from below"
        )
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
    """Cut a record into parts.

    Parts without a loss, or before the first learning rate above 0, are left out.

    Args:
        steps: that were taken, each finite.
        parts: at most so many; a short record has fewer.
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
