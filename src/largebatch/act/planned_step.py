"""Describe one step's micro-batches on this rank, and define the source that delivers them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(slots=True, kw_only=True)
class PlannedStep:
    """Yield the pairs (micro-batch, number of samples in it) of one step, in the order of the
    stream.

    Iterate over this object once.

    Args:
        batch_size: Planned number of samples over all ranks; your own data loader may deliver
            another number.
        accumulation: Number of micro-batches on this rank.
        micro_batches: Iterator over the pairs; each micro-batch is read when it is requested.
    """

    batch_size: int
    accumulation: int
    micro_batches: Iterator[tuple[Any, int]]

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return self.micro_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCounts:
    """Describe what the loader of one rank holds.

    Args:
        samples: Number of samples that the loader gives in one pass; None if unknown.
        data: Number of samples in the data set behind the loader; None if unknown.
    """

    samples: int | None
    data: int | None


class Source(Protocol):
    """Define the source of the steps of a `BatchLoader`.

    Attributes:
        dataset_size: Number of samples in one epoch over all ranks; None if unknown.
        stored_size: Number of samples in the data, saved with the state so that a state of other
            data is detected. This number depends neither on a sampler nor on the number of ranks.
            None if unknown.
        exhausted: Whether there is no data for another step.
    """

    @property
    def dataset_size(self) -> int | None: ...
    @property
    def stored_size(self) -> int | None: ...
    @property
    def exhausted(self) -> bool: ...

    def counts(self) -> PassCounts:
        """Return the numbers of samples that this rank's share of the data holds."""
        ...

    def share(self, everyone: Sequence[PassCounts]) -> None:
        """Store the numbers of samples that each rank's share of the data holds; called before
        `bind`.
        """
        ...

    def bind(
        self, *, batch_size: int, rank: int, ranks: int, least_parts: int, alike: bool
    ) -> None:
        """Set which ranks share the batches; called before the first step."""
        ...

    def limit(self, most: int) -> None:
        """Limit the micro-batches of all later steps to at most `most` samples; called after
        `bind`.
        """
        ...

    def step(self, position: int, batch_size: int) -> PlannedStep | None:
        """Return the step at a position of the stream; None if there is no more data."""
        ...

    def peek(self, position: int, batch_size: int, most: int) -> tuple[list[tuple[Any, int]], int]:
        """Return at most `most` micro-batches of a step, and how many micro-batches the step has.

        The step begins at the given position, and only this rank's micro-batches are counted. Each
        micro-batch comes with its number of samples. The call takes no sample from the stream.
        """
        ...

    def coming(self, position: int, count: int) -> Any:
        """Return the next `count` samples from a position, the same on every rank.

        The result is None if each rank reads its own samples.
        """
        ...

    def commit(self, planned: int, samples: int) -> None:
        """Confirm that the last step was taken, with its planned and actual numbers of samples."""
        ...

    def state(self) -> tuple[int, int]:
        """Return (number of completed passes, micro-batches taken in the current pass).

        Both numbers are 0 for a data set; only the user's own data loader needs them.
        """
        ...

    def resume(self, state: tuple[int, int]) -> None:
        """Continue after the last committed step of a saved state."""
        ...
