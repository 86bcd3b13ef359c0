"""Whether every rank reads the samples that it should."""

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
"""Samples of the stream that are compared over the ranks."""


def facts_of_data(batches: BatchLoader | None, micro_batches: Sequence[Any]) -> dict[str, Any]:
    """What one rank tells the others of its samples, as plain values."""
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
    """What the ranks' facts say when they are laid side by side."""
    ranks = len(everyone)
    streams = [facts.get("stream") for facts in everyone]
    if any(stream != streams[0] for stream in streams):
        return [_streams_differ([stream[0] for stream in streams if stream is not None])]
    if streams[0] is not None:
        size, code = streams[0]
        where = f", the same on all {ranks} ranks" if ranks > 1 else ""
        if ranks > 1 and code is None:
            where = f"; the {ranks} ranks' could not be compared, as each reading draws them anew"
        seen = f"Each of {size} samples is read once a pass{where}."
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
    """The first sample's fingerprint; None where it cannot be read."""
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
            why="Ranks read the same samples, or some are never read.",
            remedy=f"DistributedSampler(dataset, num_replicas={ranks}, rank=dist.get_rank())",
        )
    if replicas and len(set(seeds)) > 1:
        return Finding(
            name="samples",
            level="error",
            seen=f"DistributedSampler has another seed on each rank: {named(map(str, seeds))}.",
            why="Each rank takes its share of another permutation, so some samples are read by "
            "several ranks and others by none.",
            remedy="DistributedSampler(dataset, seed=0) on every rank",
        )
    size, first = everyone[0].get("whole", (0, None))
    if first is None or any(facts.get("whole") != (size, first) for facts in everyone):
        return None
    return Finding(
        name="samples",
        level="warning",
        seen=f"Each of {ranks} ranks reads all {size} samples, by a "
        f"{everyone[0]['sampler']} of its own.",
        why=f"A pass of the loaders is {ranks} passes over the data, and a step may hold a sample "
        "twice.",
        remedy="DataLoader(dataset, sampler=DistributedSampler(dataset), batch_size=64)",
    )


def _streams_differ(sizes: Sequence[int]) -> Finding:
    return Finding(
        name="samples",
        level="error",
        seen=f"The ranks' data sets differ, with {named(map(str, sizes))} samples: the next "
        f"{min(COMPARED, *sizes)} of the stream are not the same.",
        why="Each rank takes its share of one common order, so every rank needs the whole data set "
        "and the same seed; otherwise samples are read twice or never.",
        remedy="lb.BatchLoader(dataset, batch_size=512, seed=0) with the same data set on each "
        "rank, or ranks' own loaders: lb.BatchLoader(loader, batch_size=512).",
    )


def _repeated(again: int, total: int, *, ranks: int) -> Finding:
    where = f" of {ranks} ranks" if ranks > 1 else ""
    return Finding(
        name="samples",
        level="error",
        seen=f"{again} of the first {total} micro-batches{where} repeat the samples of another.",
        why="The batch holds fewer samples than it counts, and less noise is measured than there "
        "is.",
        remedy="Give each rank its own: DataLoader(dataset, sampler=DistributedSampler(dataset))"
        if ranks > 1
        else "Look at how the loader chooses its samples.",
    )
