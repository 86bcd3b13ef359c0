"""How one step's batch is cut into micro-batches: pure arithmetic, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass

MOST_ALIKE = 8
"""Up to so many ranks, where they are a power of two, may share the same parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """A batch of B samples cut into K = k x ranks contiguous chunks of nearly equal size; chunk j
    goes to rank j mod ranks, so each rank makes k backward calls.

    >>> BatchPlan(batch_size=70, ranks=2, max_micro_batch_size=16, least_parts=2).sizes
    (12, 12, 12, 12, 11, 11)

    Args:
        batch_size: samples B of the step over all ranks, at least one a rank.
        ranks: processes that share the batch.
        max_micro_batch_size: most samples in one backward call of one rank; where it is 1 and the
            ranks do not divide the batch, some calls have 2, since each rank makes equally many.
        least_parts: fewest chunks over all ranks (2 where a variance is needed), as far as the
            batch has as many samples.
        alike: whether the chunks are to be the same on 1, 2, 4 and 8 ranks, as long as they are no
            more than the chunks: their number is then 2, 4 or a multiple of 8. Single samples
            (`max_micro_batch_size=1`) stay single.

    Raises:
        ValueError: fewer samples than ranks, or a size below 1.
    """

    batch_size: int
    ranks: int = 1
    max_micro_batch_size: int
    least_parts: int = 1
    alike: bool = False

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.max_micro_batch_size < 1:
            raise ValueError(f"ranks and max_micro_batch_size are at least 1; got {self}.")
        if self.batch_size < self.ranks:
            raise ValueError(
                f"A batch of {self.batch_size} samples cannot be shared by {self.ranks} ranks: "
                f"each needs at least one. Use batch_size={self.ranks} or more, or fewer ranks."
            )

    @property
    def accumulation(self) -> int:
        """k: backward calls of each rank in this step."""
        parts = max(-(-self.batch_size // self.max_micro_batch_size), self.least_parts)
        if self.alike:
            parts = shareable(parts)
        wanted = -(-parts // self.ranks)
        return max(min(wanted, self.batch_size // self.ranks), 1)

    @property
    def parts(self) -> int:
        """K: chunks over all ranks."""
        return self.accumulation * self.ranks

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each of the K chunks, in the order of the sample stream."""
        each, longer = divmod(self.batch_size, self.parts)
        return (each + 1,) * longer + (each,) * (self.parts - longer)

    def chunks(self, *, rank: int) -> tuple[tuple[int, int], ...]:
        """(offset, size) within the batch of each chunk of one rank, in order."""
        each, longer = divmod(self.batch_size, self.parts)
        mine = range(rank, self.parts, self.ranks)
        return tuple((j * each + min(j, longer), each + (j < longer)) for j in mine)


def shareable(parts: int) -> int:
    """The least number from `parts` on that 1, 2, 4 and 8 ranks divide, if they are not more.

    >>> [shareable(parts) for parts in (1, 2, 3, 5, 8, 9, 17)]
    [1, 2, 4, 8, 8, 16, 24]
    """
    unit = min(1 << (parts - 1).bit_length(), MOST_ALIKE)
    return -(-parts // unit) * unit
