"""Split the batch of one training step into micro-batches, with the same result on every rank."""

from __future__ import annotations

from dataclasses import dataclass

MOST_ALIKE = 8
"""Largest number of ranks on which a batch has the same chunks if `alike` is True; a power of two.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Split a batch of B samples into K = k x ranks contiguous chunks of nearly equal size.

    Chunk j belongs to rank j mod ranks, so each rank makes k backward calls.

    >>> BatchPlan(batch_size=70, ranks=2, max_micro_batch_size=16, least_parts=2).sizes
    (12, 12, 12, 12, 11, 11)

    Args:
        batch_size: Number of samples B in the step over all ranks, at least one sample per rank.
        ranks: Number of processes that share the batch.
        max_micro_batch_size: Largest number of samples in one backward call on one rank. If
            `max_micro_batch_size` is 1 and `batch_size` is no multiple of `ranks`, some backward
            calls get 2 samples, because every rank makes the same number of backward calls.
        least_parts: Smallest number of chunks over all ranks. Estimating a variance requires 2
            chunks. A batch with fewer samples than `least_parts` has fewer chunks.
        alike: Whether a batch must have the same chunks on 1, 2, 4 and 8 ranks. Numbers of ranks
            above the number of chunks are ignored. If True, the number of chunks is 1, 2, 4 or a
            multiple of 8. Chunks of one sample (`max_micro_batch_size=1`) stay chunks of one
            sample.

    Raises:
        ValueError: The batch has fewer samples than ranks, or a size is below 1.
    """

    batch_size: int
    ranks: int = 1
    max_micro_batch_size: int
    least_parts: int = 1
    alike: bool = False

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.max_micro_batch_size < 1:
            raise ValueError(
                f"ranks={self.ranks} and max_micro_batch_size={self.max_micro_batch_size} were "
                "given, but both must be at least 1. Pass ranks=1, max_micro_batch_size=32."
            )
        if self.batch_size < self.ranks:
            raise ValueError(
                f"A batch of {self.batch_size} samples cannot be shared by {self.ranks} ranks: "
                f"each rank needs at least one sample. Pass batch_size={self.ranks} or more, or "
                "start fewer ranks."
            )

    @property
    def accumulation(self) -> int:
        """Return k, the number of backward calls of each rank in this step."""
        parts = max(-(-self.batch_size // self.max_micro_batch_size), self.least_parts)
        if self.alike:
            parts = shareable(parts)
        wanted = -(-parts // self.ranks)
        return max(min(wanted, self.batch_size // self.ranks), 1)

    @property
    def parts(self) -> int:
        """Return K, the number of chunks over all ranks."""
        return self.accumulation * self.ranks

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the number of samples in each of the K chunks, in the order of the samples."""
        each, longer = divmod(self.batch_size, self.parts)
        return (each + 1,) * longer + (each,) * (self.parts - longer)

    def chunks(self, *, rank: int) -> tuple[tuple[int, int], ...]:
        """Return (offset, size) of each chunk of one rank, in samples within the batch, in order.

        Args:
            rank: Rank whose chunks are returned, from 0 to ranks - 1.
        """
        each, longer = divmod(self.batch_size, self.parts)
        mine = range(rank, self.parts, self.ranks)
        return tuple((j * each + min(j, longer), each + (j < longer)) for j in mine)


def shareable(parts: int) -> int:
    """Return the smallest number of chunks, at least `parts`, that is divisible by 1, 2, 4 and 8.

    The divisors 1, 2, 4 and 8 are numbers of ranks. Divisors above the number of chunks are
    ignored.

    >>> [shareable(parts) for parts in (1, 2, 3, 5, 8, 9, 17)]
    [1, 2, 4, 8, 8, 16, 24]
    """
    unit = min(1 << (parts - 1).bit_length(), MOST_ALIKE)
    return -(-parts // unit) * unit
