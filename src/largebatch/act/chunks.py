"""Plan steps from a data set: `BatchPlan` cuts each step into chunks, which are read from the
stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from largebatch.act.fetch import Fetch
from largebatch.act.planned_step import PassCounts, PlannedStep
from largebatch.act.stream import SampleStream
from largebatch.core.errors import MicroBatchMissed
from largebatch.core.plan import BatchPlan
from largebatch.measure.random_state import keep_random_state

Chunk = tuple[int, int]
"""Pair (position of the first sample in the stream, number of samples) of one micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSlice:
    """Describe the chunks that one rank reads in every step of one batch size.

    Args:
        batch_size: Number of samples in a step, over all ranks.
        offsets: Pair (offset within the step, number of samples) of each chunk.
    """

    batch_size: int
    offsets: tuple[tuple[int, int], ...]

    def from_position(self, position: int) -> Iterator[Chunk]:
        """Yield the chunks of the step at a position, and of all later steps of this batch size."""
        while True:
            for offset, size in self.offsets:
                yield position + offset, size
            position += self.batch_size


class Delivery(Protocol):
    """Define how chunks are turned into micro-batches."""

    def micro_batches(self, position: int, cut: ChunkSlice) -> Iterator[tuple[Any, int]]:
        """Yield the micro-batches of the step at a position, each with its number of samples."""
        ...


@dataclass(frozen=True, slots=True)
class InProcess:
    """Read each micro-batch in this process, at the moment it is requested."""

    fetch: Fetch
    stream: SampleStream

    def micro_batches(self, position: int, cut: ChunkSlice) -> Iterator[tuple[Any, int]]:
        """Yield the micro-batches of the step at a position, each with its number of samples."""
        fetch, indices = self.fetch, self.stream.indices
        for offset, size in cut.offsets:
            start = position + offset
            yield fetch(start, indices(start, size)), size


class Workers:
    """Read micro-batches ahead in worker processes, as planned for the current batch size.

    The workers belong to a torch `DataLoader` whose sampler yields lists of indices. If the plan
    changes, the lists that the workers already have are read and discarded, and the new lists are
    issued after them.

    This class is mutable: it remembers which chunks were issued to the workers.
    """

    def __init__(
        self, fetch: Fetch, stream: SampleStream, *, workers: int, options: Mapping[str, Any]
    ) -> None:
        self._ahead = _ReadAheadSampler(stream)
        self._results: Iterator[Any] | None = None
        generator = torch.Generator()  # by default, the DataLoader would use the global generator
        generator.seed()
        self._loader: DataLoader[Any] = DataLoader(
            _Chunks(fetch),
            sampler=self._ahead,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            generator=generator,
            **options,
        )

    def micro_batches(self, position: int, cut: ChunkSlice) -> Iterator[tuple[Any, int]]:
        """Yield the micro-batches of the step at a position, each with its number of samples."""
        results = self._aligned(position, cut)
        for _, size in cut.offsets:
            self._ahead.issued.popleft()
            yield next(results), size

    def _aligned(self, position: int, cut: ChunkSlice) -> Iterator[Any]:
        """Return the workers' results, positioned at the first chunk of this step."""
        ahead, plan = self._ahead, cut.from_position(position)
        stale = len(ahead.issued)
        if list(islice(plan, stale)) == list(ahead.issued):
            ahead.plan, stale = plan, 0
        else:
            ahead.plan = cut.from_position(position)
        if self._results is None:
            self._results = iter(self._loader)
        for _ in range(stale):
            ahead.issued.popleft()
            next(self._results)
        return self._results


class _ReadAheadSampler:
    """Yield lists of sample indices for the workers: `plan` holds chunks that are not issued yet,
    and `issued` holds chunks that are issued but not delivered yet.
    """

    def __init__(self, stream: SampleStream) -> None:
        self.plan: Iterator[Chunk] = iter(())
        self.issued: deque[Chunk] = deque()
        self._stream = stream

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        while True:
            position, size = next(self.plan)
            self.issued.append((position, size))
            yield position, self._stream.indices(position, size).tolist()


class _Chunks(Dataset[Any]):
    """Read one chunk as one item, inside a worker."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def __getitem__(self, chunk: tuple[int, list[int]]) -> Any:
        position, indices = chunk
        return self._fetch(position, torch.tensor(indices))


def _as_it_is(micro_batch: Any) -> Any:
    return micro_batch


class ChunkSource:
    """Plan the steps of an endless stream of samples.

    This class is mutable: it remembers how the last step was cut into chunks.

    Args:
        delivery: Object that reads the chunks.
        dataset_size: Number of samples in one epoch.
        max_micro_batch_size: Largest number of samples in one chunk; None uses the largest chunk of
            the first step.
    """

    exhausted = False

    def __init__(
        self, delivery: Delivery, *, dataset_size: int, max_micro_batch_size: int | None
    ) -> None:
        self.dataset_size: int | None = dataset_size
        self.stored_size: int | None = dataset_size
        self._delivery = delivery
        self._max_micro_batch_size = max_micro_batch_size

    def counts(self) -> PassCounts:
        """Return what this rank's data set holds."""
        return PassCounts(samples=self.dataset_size, data=self.stored_size)

    def share(self, everyone: Sequence[PassCounts]) -> None:
        """Do nothing, because every rank has the whole data set."""

    def bind(
        self, *, batch_size: int, rank: int, ranks: int, least_parts: int, alike: bool
    ) -> None:
        """Set which ranks share the batches, and cut the first step."""
        self._rank, self._ranks = rank, ranks
        self._least_parts, self._alike = least_parts, alike
        share = max(ranks, least_parts) if alike else ranks
        self._most = self._max_micro_batch_size or -(-batch_size // share)
        self._cut = self._cut_of(batch_size)

    def limit(self, most: int) -> None:
        """Cut all later steps into chunks of at most `most` samples."""
        self._most = most
        self._cut = self._cut_of(self._cut.batch_size)

    def step(self, position: int, batch_size: int) -> PlannedStep:
        """Plan the step at a position of the stream."""
        cut = self._cut
        if cut.batch_size != batch_size:
            cut = self._cut = self._cut_of(batch_size)
        return PlannedStep(
            batch_size=batch_size,
            accumulation=len(cut.offsets),
            micro_batches=self._delivery.micro_batches(position, cut),
        )

    def peek(self, position: int, batch_size: int, most: int) -> tuple[list[tuple[Any, int]], int]:
        """Return the first `most` micro-batches of a step, and how many micro-batches the step
        has.
        """
        step = self.step(position, batch_size)
        with keep_random_state():  # the step reads these samples again, with the same random draws
            return list(islice(step.micro_batches, most)), step.accumulation

    def coming(self, position: int, count: int) -> Any:
        """Return the next `count` samples from a position as one micro-batch."""
        cut = ChunkSlice(batch_size=count, offsets=((0, count),))
        ((micro_batch, _),) = self._delivery.micro_batches(position, cut)
        return micro_batch

    def commit(self, planned: int, samples: int) -> None:
        """Check that the step had the planned number of samples.

        Raises:
            MicroBatchMissed: The step used another number of samples than planned.
        """
        if samples != planned:
            raise MicroBatchMissed(
                f"The step was planned with {planned} samples over all ranks, but {samples} "
                "samples were used. Use each micro-batch of a step exactly once, on every rank: "
                "for micro_batch, size in step: ..."
            )

    def state(self) -> tuple[int, int]:
        """Return (0, 0), because the position in the stream describes the whole state."""
        return 0, 0

    def resume(self, state: tuple[int, int]) -> None:
        """Do nothing, because the position in the stream describes the whole state."""

    def _cut_of(self, batch_size: int) -> ChunkSlice:
        plan = BatchPlan(
            batch_size=batch_size,
            ranks=self._ranks,
            max_micro_batch_size=self._most,
            least_parts=self._least_parts,
            alike=self._alike,
        )
        return ChunkSlice(batch_size=batch_size, offsets=plan.chunks(rank=self._rank))
