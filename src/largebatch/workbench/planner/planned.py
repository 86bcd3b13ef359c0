"""`largebatch plan`: the best schedule that the noisy quadratic finds, beside the usual ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from largebatch.workbench.planner.plan import Plan, plan
from largebatch.workbench.planner.price import Price
from largebatch.workbench.planner.recorded import fit_record
from largebatch.workbench.planner.request import Minimise, Wish
from largebatch.workbench.planner.schedule_file import schedule_of, write_schedule


def planned(
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
    out: str | os.PathLike[str] | None = None,
) -> Plan:
    """The plan of a run, and its schedule in a file.

    Args:
        budget: in samples.
        base_batch_size: B0, in samples; a record says its own.
        noise_scales: one or two, see `model_of`; or
        record: of a run, to which the model is fitted, and which says the base batch.
        latency, throughput: of a step, see `Price`; both or neither.
        workers, memory_limit, minimise, max_lr, within, stages, exponent: as in `Wish`.
        out: a new file for the schedule.

    Raises:
        ValueError: numbers that are missing, said twice or out of range.
        RecordError: a record that is damaged, too short or too noisy, or a file that exists.
    """
    if (record is None) == (not noise_scales):
        raise ValueError(
            "A plan needs the noise scale, from a number or from a recorded run, one of the two: "
            "--noise-scale 4000 or --record run.jsonl"
        )
    notes: tuple[str, ...] = ()
    recorded = None
    if record is not None:
        seen = fit_record(record)
        if base_batch_size not in (None, seen.base_batch_size):
            raise ValueError(
                f"{record} has a base batch of {seen.base_batch_size}; leave --base-batch out."
            )
        base_batch_size, recorded = seen.base_batch_size, seen.model
        notes = (f"The record as a quadratic: {seen.fit}.",)
    if base_batch_size is None:
        raise ValueError("A plan needs the base batch: --base-batch 256")
    if (latency is None) != (throughput is None):
        raise ValueError(
            "A step's price is its latency and the throughput: --latency 0.05 --throughput 2000"
        )
    price = None
    if latency is not None and throughput is not None:
        price = Price(latency=latency, throughput=throughput, workers=workers)
    found = plan(
        Wish(
            budget=budget,
            base_batch_size=base_batch_size,
            noise_scales=noise_scales,
            recorded=recorded,
            minimise=minimise,
            within=within,
            max_lr=max_lr,
            stages=stages,
            price=price,
            workers=workers,
            memory_limit=memory_limit,
            exponent=exponent,
        )
    )
    if out is not None:
        write_schedule(schedule_of(found.rule, found.table), out)
    return replace(found, notes=(*notes, *found.notes))
