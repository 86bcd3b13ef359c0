"""Check that every rank reads the samples that it should read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from largebatch.act.loader import BatchLoader
from largebatch.act.passes import sampler_of
from largebatch.checks.finding import Finding, named
from largebatch.checks.samples import fingerprint
from largebatch.measure.random_state import keep_random_state, seed_generators

COMPARED = 16
"""Number of samples of the stream that are compared between the ranks."""


def facts_of_data(batches: BatchLoader | None, micro_batches: Sequence[Any]) -> dict[str, Any]:
    """Return what one rank reports to the others about its samples, as plain values."""
    if batches is not None:
        count = min(COMPARED, batches.dataset_size or COMPARED)
        first = batches.coming(count)
        if first is not None:
            code = fingerprint(first)
            drawn_anew = fingerprint(batches.coming(count)) != code
            return {"stream": (batches.dataset_size, None if drawn_anew else code)}
    facts: dict[str, Any] = {"micro-batches": [fingerprint(one) for one in micro_batches]}
    loader = batches.source if batches is not None else None
    if isinstance(loader, DataLoader):
        sampler = sampler_of(loader)
        facts["sampler"] = type(sampler).__name__
        if isinstance(sampler, DistributedSampler):
            facts["replicas"] = sampler.num_replicas
            facts["seed"] = sampler.seed
        elif isinstance(sampler, (RandomSampler, SequentialSampler)):
            facts["whole"] = (len(sampler), _first_of(loader.dataset))
    return facts


def compare_ranks(everyone: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Return the findings from comparing the facts of all ranks."""
    ranks = len(everyone)
    streams = [facts.get("stream") for facts in everyone]
    if any(stream != streams[0] for stream in streams):
        return [_streams_differ([stream[0] for stream in streams if stream is not None])]
    if streams[0] is not None:
        size, code = streams[0]
        where = f", in the same order on all {ranks} ranks" if ranks > 1 else ""
        if ranks > 1 and code is None:
            where = (
                f"; the samples of the {ranks} ranks could not be compared, because the data set "
                "draws random numbers at each reading"
            )
        seen = f"Each of {size} samples is read once per pass{where}."
        return [Finding(name="samples", level="ok", seen=seen)]
    codes = [code for facts in everyone for code in facts["micro-batches"]]
    again = len(codes) - len(set(codes))
    if again:
        return [_repeated(again, len(codes), ranks=ranks)]
    if ranks == 1:
        return []
    wrong = _samplers(everyone)
    if wrong is not None or not codes:
        return [wrong] if wrong is not None else []
    seen = f"The first micro-batches of {ranks} ranks hold different samples."
    return [Finding(name="samples", level="ok", seen=seen)]


def _first_of(dataset: Any) -> int | None:
    """Return the fingerprint of the first sample; None if the sample cannot be read."""
    try:
        with keep_random_state():
            seed_generators(0)
            return fingerprint(torch.utils.data.default_convert(dataset[0]))
    except Exception:
        return None


def _samplers(everyone: Sequence[Mapping[str, Any]]) -> Finding | None:
    ranks = len(everyone)
    replicas: set[int] = {facts["replicas"] for facts in everyone if "replicas" in facts}
    seeds = [facts.get("seed") for facts in everyone]
    if replicas - {ranks}:
        return Finding(
            name="samples",
            level="error",
            seen=f"DistributedSampler has num_replicas={max(replicas - {ranks})}, but the batch "
            f"is shared by {ranks} ranks.",
            why="Several ranks then read the same samples, or some samples are never read.",
            remedy=f"Use DistributedSampler(dataset, num_replicas={ranks}, rank=dist.get_rank()).",
        )
    if replicas and len(set(seeds)) > 1:
        return Finding(
            name="samples",
            level="error",
            seen=f"DistributedSampler has different seeds on the ranks: {named(map(str, seeds))}.",
            why="Each rank takes its share of a different permutation, so some samples are read "
            "by several ranks and others by no rank.",
            remedy="Use the same seed on every rank: DistributedSampler(dataset, seed=0).",
        )
    size, first = everyone[0].get("whole", (0, None))
    if first is None or any(facts.get("whole") != (size, first) for facts in everyone):
        return None
    return Finding(
        name="samples",
        level="warning",
        seen=f"Each of {ranks} ranks reads all {size} samples, with its own "
        f"{everyone[0]['sampler']}.",
        why=f"One pass of the loaders therefore reads every sample {ranks} times, and a step may "
        "hold a sample twice.",
        remedy="Share the samples between the ranks: "
        "DataLoader(dataset, sampler=DistributedSampler(dataset), batch_size=64).",
    )


def _streams_differ(sizes: Sequence[int]) -> Finding:
    return Finding(
        name="samples",
        level="error",
        seen="The ranks read different data: their data sets have "
        f"{named(map(str, sizes))} samples, and the next {min(COMPARED, *sizes)} samples of the "
        "stream are not the same on all ranks.",
        why="Each rank takes its share of one common order, so every rank needs the whole data set "
        "and the same seed. Otherwise some samples are read twice and others never.",
        remedy="Pass the same data set and seed on every rank, "
        "lb.BatchLoader(dataset, batch_size=512, seed=0), or one loader per rank, "
        "lb.BatchLoader(loader, batch_size=512).",
    )


def _repeated(again: int, total: int, *, ranks: int) -> Finding:
    where = f" of {ranks} ranks" if ranks > 1 else ""
    return Finding(
        name="samples",
        level="error",
        seen=f"{again} of the first {total} micro-batches{where} repeat the samples of another "
        "micro-batch.",
        why="The batch holds fewer different samples than are counted, so the measured noise is "
        "too small.",
        remedy="Give each rank its own samples: "
        "DataLoader(dataset, sampler=DistributedSampler(dataset))."
        if ranks > 1
        else "Check how the loader selects its samples.",
    )
