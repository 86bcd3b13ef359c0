"""The naive twin of the stream and of its cut into micro-batches: plain lists."""

import torch

from largebatch.act.loader import BatchLoader
from largebatch.act.stream import seed_of


def naive_stream(size, *, seed, epochs, members=None):
    """The stream written out as a plain list."""
    written = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed_of("epoch", seed, epoch))
        order = torch.randperm(size, generator=generator).tolist()
        written += order if members is None else [members[i] for i in order]
    return written


def naive_chunks(samples, *, parts):
    """A step's samples dealt into contiguous parts, the longer ones first."""
    samples, chunks = list(samples), []
    for left in range(parts, 0, -1):
        size = -(-len(samples) // left)
        chunks.append(samples[:size])
        samples = samples[size:]
    return chunks


def bound(source, *, rank=0, ranks=1, least_parts=1, alike=False, **options):
    loader = BatchLoader(source, **options)
    loader.bind(rank=rank, ranks=ranks, least_parts=least_parts, alike=alike)
    return loader


def take(loader, *, batch_size=None, limit=None):
    """One whole step of one rank: its micro-batches and their sizes, committed."""
    if batch_size is not None:
        loader.resize(batch_size)
    step = loader.next_step(limit)
    pairs = list(step)
    assert len(pairs) == step.accumulation
    loader.commit(step.batch_size)
    return [micro_batch for micro_batch, _ in pairs]


def as_lists(micro_batches):
    return [micro_batch.tolist() for micro_batch in micro_batches]
