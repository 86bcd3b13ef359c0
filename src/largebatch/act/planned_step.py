"""One step's micro-batches on this rank, and what delivers them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(slots=True, kw_only=True)
class PlannedStep:
    """Iterate once over (micro-batch, its samples), in the order of the stream.

    Args:
        batch_size: planned samples over all ranks; for a loader of the user's the wish.
        accumulation: micro-batches on this rank.
        micro_batches: what is iterated, read when asked for.
    """

    batch_size: int
    accumulation: int
    micro_batches: Iterator[tuple[Any, int]]

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return self.micro_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCounts:
    """What one rank's loader holds.

    Args:
        samples: what it gives in a pass; None where unknown.
        data: samples of the data set behind it; None where unknown.
    """

    samples: int | None
    data: int | None


class Source(Protocol):
    """Where the steps of a `BatchLoader` come from.

    Attributes:
        dataset_size: samples in an epoch over all ranks, None where unknown.
        stored_size: samples of the data, by which a saved state is told from that of other data;
            it depends neither on a sampler nor on the number of ranks. None where unknown.
        exhausted: whether there is no data for another step.
    """

    @property
    def dataset_size(self) -> int | None: ...
    @property
    def stored_size(self) -> int | None: ...
    @property
    def exhausted(self) -> bool: ...

    def counts(self) -> PassCounts:
        """Return what this rank's part of the data holds."""
        ...

    def share(self, everyone: Sequence[PassCounts]) -> None:
        """Take over what each rank's part holds, before `bind`."""
        ...

    def bind(
        self, *, batch_size: int, rank: int, ranks: int, least_parts: int, alike: bool
    ) -> None:
        """Say who shares the batches, before the first step."""
        ...

    def limit(self, most: int) -> None:
        """The micro-batches of the steps to come have at most so many samples; after `bind`."""
        ...

    def step(self, position: int, batch_size: int) -> PlannedStep | None:
        """The step at a position of the stream; None when there is no more data."""
        ...

    def peek(self, position: int, batch_size: int, most: int) -> tuple[list[tuple[Any, int]], int]:
        """At most so many micro-batches of the step at a position with their samples, and how many
        the step has on this rank, without taking them."""
        ...

    def coming(self, position: int, count: int) -> Any:
        """So many samples from a position on, the same on every rank; None where each rank reads
        its own."""
        ...

    def commit(self, planned: int, samples: int) -> None:
        """The last step was taken, planned with so many samples and taken with so many."""
        ...

    def state(self) -> tuple[int, int]:
        """(passes begun, micro-batches taken in this one) of a loader of the user's."""
        ...

    def resume(self, state: tuple[int, int]) -> None:
        """Go on after the last committed step of such a state."""
        ...
