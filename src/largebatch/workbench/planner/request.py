"""Describe a run to be planned by its budget, noise scale or record, step duration and bounds."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from largebatch.workbench.planner.model import QuadraticModel, model_of
from largebatch.workbench.planner.recorded import RecordFit, fit_record

Minimise = Literal["samples", "steps", "time"]

LARGEST_BATCH = 2**30
"""Largest batch size in samples if no memory limit is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Describe the duration of a step.

    seconds per step = latency + batch size / (throughput x workers)

    >>> Price(latency=0.1, throughput=1000.0, workers=2).seconds(4000)
    2.1

    Args:
        latency: Seconds per step that do not depend on the batch size, above 0.
        throughput: Samples per second of one worker, above 0.
        workers: Number of workers that share a batch, at least 1.

    Raises:
        ValueError: A number is out of range.
    """

    latency: float
    throughput: float
    workers: int = 1

    def __post_init__(self) -> None:
        if not (0.0 < self.latency < math.inf and 0.0 < self.throughput < math.inf):
            raise ValueError(
                f"latency={self.latency!r} and throughput={self.throughput!r} were given, but both "
                "the seconds per step and the samples per second of a worker must be finite and "
                "above 0. Pass latency=0.05 and throughput=2000"
            )
        if self.workers < 1:
            raise ValueError(
                f"workers={self.workers!r} was given, but a step requires at least 1 worker. Pass "
                "workers=1"
            )

    def seconds(self, batch_size: float) -> float:
        """Return the duration of one step in seconds, for a batch size in samples."""
        return self.latency + batch_size / (self.throughput * self.workers)

    def total(self, *, steps: float, samples: float) -> float:
        """Return the duration in seconds of a run with the given numbers of steps and samples."""
        return self.latency * steps + samples / (self.throughput * self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Describe the run to be planned.

    Args:
        budget: Number of training samples of the run.
        base_batch_size: Base batch size B0, in samples.
        noise_scales: Gradient noise scale of the first steps and, optionally, gradient noise scale
            of the last steps, in samples. `noise_scales` is empty if `recorded` is given.
        recorded: Model that was fitted to a recorded run, instead of `noise_scales`.
        minimise: Cost to minimize: "steps", "time" or "samples".
        within: Allowed relative excess of the final loss over the lowest loss, above 0.
        max_lr: Largest factor on the base learning rate, at least 1. The factor never exceeds the
            largest stable factor of the model. If max_lr is None and a record was fitted, the
            factor does not exceed the largest recorded factor either.
        stages: Number of stages of the schedule, 1 to 40.
        price: Duration of a step; None if only steps and samples are counted.
        workers: Number of workers that share a batch.
        memory_limit: Largest number of samples that one worker can hold in a step; None for no
            limit.
        exponent: Exponent s of the loss without noise, see `model_of`.

    Raises:
        ValueError: A number is out of range, or no schedule satisfies the bounds.
    """

    budget: int
    base_batch_size: int
    noise_scales: Sequence[float] = ()
    recorded: RecordFit | None = None
    minimise: Minimise = "steps"
    within: float = 0.01
    max_lr: float | None = None
    stages: int = 6
    price: Price | None = None
    workers: int = 1
    memory_limit: int | None = None
    exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.minimise == "time" and self.price is None:
            raise ValueError(
                f"minimise={self.minimise!r} requires the duration of a step. Pass latency=0.05 "
                "and throughput=2000"
            )
        _check_ranges(self)
        _check_sizes(self)

    @property
    def largest(self) -> int:
        """Return the largest batch size that the memory of all workers and the budget allow."""
        held = LARGEST_BATCH if self.memory_limit is None else self.memory_limit * self.workers
        return min(held, self.budget // self.stages)

    def model(self, *, bins: int) -> QuadraticModel:
        """Return the model fitted to the record, or the model of the noise scales.

        Args:
            bins: Largest number of bins of the spectrum; ignored with a record.

        Raises:
            ValueError: The noise scales or the exponent do not describe a model; see `model_of`.
        """
        if self.recorded is not None:
            return self.recorded.model
        return model_of(
            self.noise_scales,
            budget=self.budget,
            base_batch_size=self.base_batch_size,
            exponent=self.exponent,
            bins=bins,
        )


def plan_request(
    *,
    budget: int,
    base_batch_size: int | None = None,
    noise_scales: Sequence[float] = (),
    record: str | os.PathLike[str] | None = None,
    latency: float | None = None,
    throughput: float | None = None,
    workers: int = 1,
    memory_limit: int | None = None,
    minimise: Minimise = "steps",
    max_lr: float | None = None,
    within: float = 0.01,
    stages: int = 6,
    exponent: float = 0.5,
) -> PlanRequest:
    """Return the request for a plan from plain numbers and the path of a record.

    >>> from largebatch import workbench
    >>> request = workbench.plan_request(
    ...     budget=10**6, base_batch_size=64, noise_scales=[1000.0], memory_limit=2048, workers=4
    ... )
    >>> request.largest
    8192

    Args:
        budget: Number of training samples of the run.
        base_batch_size: Base batch size B0, in samples. If omitted, the base batch size is read
            from the record.
        noise_scales: Gradient noise scale of the first steps and, optionally, gradient noise scale
            of the last steps, in samples. Pass either `noise_scales` or `record`.
        record: Path of a recorded run to which the model is fitted.
        latency, throughput: Seconds per step that do not depend on the batch size, and samples per
            second of one worker. Pass latency and throughput together, or neither.
        workers, memory_limit, minimise, max_lr, within, stages, exponent: As in `PlanRequest`.

    Raises:
        ValueError: A number is missing, given twice or out of range.
        RecordError: The record is corrupted, too short or too noisy.
    """
    if (record is None) == (not noise_scales):
        given = "neither was given" if record is None else "both were given"
        raise ValueError(
            f"A plan requires either a noise scale or a recorded run, but {given}. Pass one of "
            "noise_scales=[4000] and record='run.jsonl'"
        )
    recorded = None if record is None else fit_record(record)
    if recorded is not None:
        if base_batch_size not in (None, recorded.base_batch_size):
            raise ValueError(
                f"base_batch_size={base_batch_size} was given, but the base batch size in the "
                f"record {record} is {recorded.base_batch_size}. Leave out "
                f"base_batch_size={base_batch_size}"
            )
        base_batch_size = recorded.base_batch_size
    if base_batch_size is None:
        raise ValueError(
            "A plan requires the base batch size, for which the base learning rate was tuned. Pass "
            "base_batch_size=256"
        )
    return PlanRequest(
        budget=budget,
        base_batch_size=base_batch_size,
        noise_scales=noise_scales,
        recorded=recorded,
        minimise=minimise,
        within=within,
        max_lr=max_lr,
        stages=stages,
        price=_price_of(latency, throughput, workers=workers),
        workers=workers,
        memory_limit=memory_limit,
        exponent=exponent,
    )


def _price_of(latency: float | None, throughput: float | None, *, workers: int) -> Price | None:
    if latency is None and throughput is None:
        return None
    if latency is None or throughput is None:
        raise ValueError(
            "Only one of latency and throughput was given, but the duration of a step requires "
            "both. Pass latency=0.05 and throughput=2000"
        )
    return Price(latency=latency, throughput=throughput, workers=workers)


def _check_ranges(request: PlanRequest) -> None:
    if not 0.0 < request.within < 1.0:
        raise ValueError(
            f"within={request.within!r} was given, but the allowed relative excess of the loss "
            "must be above 0 and below 1. Pass within=0.01"
        )
    if not 1 <= request.stages <= 40:
        raise ValueError(
            f"stages={request.stages!r} was given, but a plan has 1 to 40 stages. Pass stages=6"
        )
    if request.workers < 1:
        raise ValueError(
            f"workers={request.workers!r} was given, but a plan requires at least 1 worker. Pass "
            "workers=1"
        )
    if request.max_lr is not None and not 1.0 <= request.max_lr < math.inf:
        raise ValueError(
            f"max_lr={request.max_lr!r} was given, but the largest factor on the base learning "
            "rate must be finite and at least 1, because the base learning rate itself is taken to "
            "be stable. Pass max_lr=4"
        )


def _check_sizes(request: PlanRequest) -> None:
    least = request.base_batch_size * request.stages
    if request.budget < least:
        raise ValueError(
            f"budget={request.budget} was given, but a plan with {request.stages} stage(s) "
            f"requires {least:,} samples: one step of the base batch size "
            f"{request.base_batch_size:,} per stage. Pass budget={least} or stages=1"
        )
    if request.largest < request.base_batch_size:
        held = -(-request.base_batch_size // request.workers)
        raise ValueError(
            f"memory_limit={request.memory_limit} was given, so {request.workers} worker(s) hold "
            f"{request.largest:,} samples, which is less than the base batch size "
            f"{request.base_batch_size:,}. Pass memory_limit={held} or more workers"
        )
