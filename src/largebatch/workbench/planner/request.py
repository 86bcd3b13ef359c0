"""What is to be planned: a budget, a noise scale or a record, the price of a step, the bounds."""

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
"""Samples, where no memory bounds the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a step costs: its latency, and its samples over all workers.

    seconds of a step = latency + batch / (throughput x workers)

    >>> Price(latency=0.1, throughput=1000.0, workers=2).seconds(4000)
    2.1

    Args:
        latency: seconds of a step whatever its batch, above 0.
        throughput: samples per second of one worker, above 0.
        workers: that share a batch, at least 1.

    Raises:
        ValueError: a number outside its range.
    """

    latency: float
    throughput: float
    workers: int = 1

    def __post_init__(self) -> None:
        if not (0.0 < self.latency < math.inf and 0.0 < self.throughput < math.inf):
            raise ValueError(
                f"latency={self.latency!r} and throughput={self.throughput!r} were given, but the "
                "seconds of a step and the samples per second of a worker are above 0. Pass "
                "latency=0.05 and throughput=2000"
            )
        if self.workers < 1:
            raise ValueError(
                f"workers={self.workers!r} was given, but at least 1 worker takes a step. Pass "
                "workers=1"
            )

    def seconds(self, batch_size: float) -> float:
        """Return the seconds of one step."""
        return self.latency + batch_size / (self.throughput * self.workers)

    def total(self, *, steps: float, samples: float) -> float:
        """Return the seconds of a run; the batches enter by their sum alone."""
        return self.latency * steps + samples / (self.throughput * self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What is to be planned.

    Args:
        budget: in samples.
        base_batch_size: B0, in samples.
        noise_scales: of the first steps, and maybe of the last ones, in samples; or
        recorded: what was fitted to a run.
        minimise: "steps", "time" or "samples".
        within: the part by which the loss may be above the least one, above 0.
        max_lr: largest factor on the base rate, at least 1; never above the stable one of the
            model, which None stands for, or the largest one in the record.
        stages: how many.
        price: of a step; None where only steps and samples count.
        workers: that share a batch.
        memory_limit: largest batch of one worker, in samples; None for no bound.
        exponent: of the loss, see `model_of`.

    Raises:
        ValueError: a number outside its range, or numbers that leave no schedule.
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
                f"minimise={self.minimise!r} needs the price of a step. Pass latency=0.05 and "
                "throughput=2000"
            )
        _check_ranges(self)
        _check_sizes(self)

    @property
    def largest(self) -> int:
        """The largest batch that the memory of all workers and the budget allow."""
        held = LARGEST_BATCH if self.memory_limit is None else self.memory_limit * self.workers
        return min(held, self.budget // self.stages)

    def model(self, *, bins: int) -> QuadraticModel:
        """Return the model of the run: that of the record, or the one of the noise scales.

        Raises:
            ValueError: numbers that `model_of` refuses.
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
    """Return what is to be planned, from plain numbers and a record's file.

    Args:
        budget: in samples.
        base_batch_size: B0, in samples; a record says its own.
        noise_scales: one or two, see `model_of`; or
        record: of a run, to which the model is fitted, and which says the base batch.
        latency, throughput: of a step, see `Price`; both or neither.
        workers, memory_limit, minimise, max_lr, within, stages, exponent: as in `PlanRequest`.

    Raises:
        ValueError: numbers that are missing, given twice or out of range.
        RecordError: a record that is damaged, too short or too noisy.
    """
    if (record is None) == (not noise_scales):
        raise ValueError(
            "A plan needs the noise scale, either as a number or from a recorded run. Pass one of "
            "noise_scales=[4000] and record='run.jsonl'"
        )
    recorded = None if record is None else fit_record(record)
    if recorded is not None:
        if base_batch_size not in (None, recorded.base_batch_size):
            raise ValueError(
                f"base_batch_size={base_batch_size} was given, but the base batch of {record} is "
                f"{recorded.base_batch_size}. Leave out base_batch_size={base_batch_size}"
            )
        base_batch_size = recorded.base_batch_size
    if base_batch_size is None:
        raise ValueError("A plan needs the base batch. Pass base_batch_size=256")
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
            "The price of a step is both its latency and the throughput of a worker. Pass "
            "latency=0.05 and throughput=2000"
        )
    return Price(latency=latency, throughput=throughput, workers=workers)


def _check_ranges(request: PlanRequest) -> None:
    if not 0.0 < request.within < 1.0:
        raise ValueError(
            f"within={request.within!r} was given, but the margin on the loss is above 0 and below "
            "1. Pass within=0.01"
        )
    if not 1 <= request.stages <= 40:
        raise ValueError(
            f"stages={request.stages!r} was given, but a plan has 1 to 40 stages. Pass stages=6"
        )
    if request.workers < 1:
        raise ValueError(
            f"workers={request.workers!r} was given, but a plan is for at least 1 worker. Pass "
            "workers=1"
        )
    if request.max_lr is not None and not 1.0 <= request.max_lr < math.inf:
        raise ValueError(
            f"max_lr={request.max_lr!r} was given, but the largest stable factor on the base rate "
            "is at least 1: below it the base rate would be past the stability limit. Pass max_lr=4"
        )


def _check_sizes(request: PlanRequest) -> None:
    if request.budget < request.base_batch_size * request.stages:
        raise ValueError(
            f"budget={request.budget} was given, but it has no step of the base batch, "
            f"{request.base_batch_size:,}, for each of {request.stages} stages. Pass more samples, "
            "or fewer stages: stages=1"
        )
    if request.largest < request.base_batch_size:
        least = -(-request.base_batch_size // request.workers)
        raise ValueError(
            f"{request.workers} worker(s) hold {request.largest:,} samples, fewer than the base "
            f"batch, {request.base_batch_size:,}. Pass memory_limit={least} or more workers"
        )
