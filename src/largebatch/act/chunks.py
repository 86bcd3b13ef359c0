"""Steps from a data set: each is cut by `BatchPlan` and read chunk by chunk from the stream."""

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
"""(position of the first sample, samples) of one micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSlice:
    """The chunks of one rank in every step of one batch size.

    Args:
        batch_size: samples of a step over all ranks.
        offsets: (offset within the step, samples) of each chunk.
    """

    batch_size: int
    offsets: tuple[tuple[int, int], ...]

    def from_position(self, position: int) -> Iterator[Chunk]:
        """The chunks of the step at a position and of all that would follow at this size."""
        while True:
            for offset, size in self.offsets:
                yield position + offset, size
            position += self.batch_size


class Delivery(Protocol):
    """What turns chunks into micro-batches."""

    def micro_batches(self, position: int, cut: ChunkSlice) -> Iterator[tuple[Any, int]]:
        """The micro-batches of the step at a position, with their samples."""
        ...


@dataclass(frozen=True, slots=True)
class InProcess:
    """Each micro-batch is read when it is asked for."""

    fetch: Fetch
    stream: SampleStream

    def micro_batches(self, position: int, cut: ChunkSlice) -> Iterator[tuple[Any, int]]:
        fetch, indices = self.fetch, self.stream.indices
        for offset, size in cut.offsets:
            start = position + offset
            yield fetch(start, indices(start, size)), size


class Workers:
    """Worker processes read ahead, as planned for the current batch size; changes state.

    They are torch's: a `DataLoader` whose sampler gives index lists. When the plan changes, the
    lists that workers already have are read and dropped, and the right ones are issued after them.
    """

    def __init__(
        self, fetch: Fetch, stream: SampleStream, *, workers: int, options: Mapping[str, Any]
    ) -> None:
        self._ahead = _ReadAheadSampler(stream)
        self._results: Iterator[Any] | None = None
        generator = torch.Generator()  # the caller's would be drawn from
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
        results = self._aligned(position, cut)
        for _, size in cut.offsets:
            self._ahead.issued.popleft()
            yield next(results), size

    def _aligned(self, position: int, cut: ChunkSlice) -> Iterator[Any]:
        """The workers' results, the next of which is the first chunk of this step."""
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
    """The sampler of the workers: `plan` is still to be issued, `issued` not yet delivered."""

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
    """What a worker reads: a chunk is one item."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def __getitem__(self, chunk: tuple[int, list[int]]) -> Any:
        position, indices = chunk
        return self._fetch(position, torch.tensor(indices))


def _as_it_is(micro_batch: Any) -> Any:
    return micro_batch


class ChunkSource:
    """The steps of an endless stream; remembers its last cut.

    Args:
        delivery: what reads the chunks.
        dataset_size: samples in an epoch.
        max_micro_batch_size: most samples of a chunk; None for the largest chunk of the first step.
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
        return PassCounts(samples=self.dataset_size, data=self.stored_size)

    def share(self, everyone: Sequence[PassCounts]) -> None:
        """Nothing to do: every rank has the whole data set."""

    def bind(
        self, *, batch_size: int, rank: int, ranks: int, least_parts: int, alike: bool
    ) -> None:
        self._rank, self._ranks = rank, ranks
        self._least_parts, self._alike = least_parts, alike
        share = max(ranks, least_parts) if alike else ranks
        self._most = self._max_micro_batch_size or -(-batch_size // share)
        self._cut = self._cut_of(batch_size)

    def limit(self, most: int) -> None:
        """Cut the steps to come into chunks of at most so many samples."""
        self._most = most
        self._cut = self._cut_of(self._cut.batch_size)

    def step(self, position: int, batch_size: int) -> PlannedStep:
        cut = self._cut
        if cut.batch_size != batch_size:
            cut = self._cut = self._cut_of(batch_size)
        return PlannedStep(
            batch_size=batch_size,
            accumulation=len(cut.offsets),
            micro_batches=self._delivery.micro_batches(position, cut),
        )

    def peek(self, position: int, batch_size: int, most: int) -> tuple[list[tuple[Any, int]], int]:
        step = self.step(position, batch_size)
        with keep_random_state():  # they are read again, then with the same draws
            return list(islice(step.micro_batches, most)), step.accumulation

    def coming(self, position: int, count: int) -> Any:
        cut = ChunkSlice(batch_size=count, offsets=((0, count),))
        ((micro_batch, _),) = self._delivery.micro_batches(position, cut)
        return micro_batch

    def commit(self, planned: int, samples: int) -> None:
        if samples != planned:
            raise MicroBatchMissed(
                f"The step was planned with {planned} samples over all ranks and taken with "
                f"{samples}. Use each micro-batch of a step once, on every rank: "
                "for micro_batch, size in step: ..."
            )

    def state(self) -> tuple[int, int]:
        return 0, 0

    def resume(self, state: tuple[int, int]) -> None:
        """Nothing to do: the position says it all."""

    def _cut_of(self, batch_size: int) -> ChunkSlice:
        plan = BatchPlan(
            batch_size=batch_size,
            ranks=self._ranks,
            max_micro_batch_size=self._most,
            least_parts=self._least_parts,
            alike=self._alike,
        )
        return ChunkSlice(batch_size=batch_size, offsets=plan.chunks(rank=self._rank))
