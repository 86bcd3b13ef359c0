"""Plan steps from the user's own data loader, whose batches are the micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from largebatch.act.leading_size import dimension_advice, leading_size
from largebatch.act.passes import known_length, sampler_of, samples_of_pass, sum_of_known
from largebatch.act.planned_step import PassCounts, PlannedStep

_END = object()
_UNREPEATABLE = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class OwnLoader:
    """Plan the steps of the user's own loader or iterable; reading from it changes state.

    A loader that can be iterated again is repeated without end, pass after pass; an iterator ends.
    Each step takes k whole micro-batches on this rank, the smallest number of micro-batches whose
    samples reach this rank's share of the batch:

        k = ceil(batch size / (ranks * size))

    Here `size` is the largest micro-batch seen in the current pass, because the short micro-batch
    at the end of a pass does not predict the next sizes. One micro-batch is read ahead, so that its
    size and the end of the data are known before a step. If the source is an iterator, all k
    micro-batches are drawn before the first one is yielded, because the last micro-batch must be
    known and the iterator may end earlier.

    Args:
        loader: Iterable of micro-batches; on several ranks, each rank has its own iterable.
        size_of: Function (micro-batch) -> number of samples in it.
        dataset_size: Number of samples in one pass over all ranks, if the user gave it. If None,
            the samples are counted as the sum of what each rank's loader gives in a pass
            (`samples_of_pass`). A loader that is not sharded therefore counts once for each rank
            that reads it.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        size_of: Callable[[Any], int],
        dataset_size: int | None = None,
    ) -> None:
        self._loader = loader
        self._size_of = size_of
        self._iterator: Iterator[Any] | None = None
        self._held: tuple[Any, int] | None = None
        self._ended = False
        self._pass = self._taken = self._largest = self._first = 0
        self._committed = (0, 0)
        self._given_size = dataset_size
        own = samples_of_pass(loader) if dataset_size is None else dataset_size
        self._counts = PassCounts(samples=own, data=_data_of(loader))
        self.share([self._counts])

    def counts(self) -> PassCounts:
        """Return what this rank's loader holds."""
        return self._counts

    def share(self, everyone: Sequence[PassCounts]) -> None:
        """Store the number of samples per pass over all ranks, from the counts of each rank's
        loader.
        """
        samples = [counts.samples for counts in everyone]
        data = [counts.data for counts in everyone]
        # `bind` raises an error for a pass without samples.
        self.dataset_size = self._given_size or sum_of_known(samples) or None
        # Either the ranks share one data set, or each rank has a shard of its own.
        self.stored_size = data[0] if len(set(data)) == 1 else sum_of_known(data)

    @property
    def exhausted(self) -> bool:
        """Whether the iterator has no data for another step; a loader that can be repeated never
        ends.
        """
        self._hold()
        return self._ended

    def bind(
        self, *, batch_size: int, rank: int, ranks: int, least_parts: int, alike: bool
    ) -> None:
        """Set which ranks share the batches, and check that the first micro-batch fits into the
        batch.
        """
        self._ranks, self._least = ranks, -(-least_parts // ranks)
        if self._iterator is None:
            self._open()
        self._hold()
        if self._held is None:
            return  # a resumed iterator may be at its end
        size = self._first  # in a resumed run, the size of the first micro-batch of the pass
        advice = dimension_advice(self._held[0]) if self._size_of is leading_size else ""
        if batch_size < ranks * size or -(-batch_size // (ranks * size)) < self._least:
            raise ValueError(
                f"A batch of {batch_size} samples over {ranks} rank(s) needs at least "
                f"{self._least} micro-batches per rank, but each micro-batch of the loader "
                f"holds {size} samples. Use a larger batch, "
                f"BatchLoader(loader, batch_size={ranks * size * self._least}), or smaller "
                f"micro-batches: DataLoader(dataset, batch_size="
                f"{max(batch_size // (ranks * self._least), 1)}).{advice}"
            )

    def limit(self, most: int) -> None:
        """Raise an AssertionError, because the user's own loader decides the micro-batch sizes."""
        raise AssertionError("the user's own loader decides the micro-batch sizes")

    def step(self, position: int, batch_size: int) -> PlannedStep | None:
        """Plan the next step; None if the data has ended."""
        self._hold()
        if self._ended:
            return None
        accumulation = max(self._wanted(batch_size), self._least)
        micro_batches = self._take(accumulation)
        if self._is_iterator:
            drawn = list(micro_batches)
            accumulation, micro_batches = len(drawn), iter(drawn)
        return PlannedStep(
            batch_size=batch_size, accumulation=accumulation, micro_batches=micro_batches
        )

    def peek(self, position: int, batch_size: int, most: int) -> tuple[list[tuple[Any, int]], int]:
        """Return the micro-batch that was read ahead, and the number of micro-batches in the next
        step.
        """
        self._hold()
        held = [] if self._held is None else [self._held]
        return held, max(self._wanted(batch_size), self._least) if held else 0

    def coming(self, position: int, count: int) -> Any:
        """Return None, because each rank reads its own samples."""
        return None

    def commit(self, planned: int, samples: int) -> None:
        """Confirm that the last step was taken, and store the position after it."""
        self._committed = (self._pass, self._taken)

    def state(self) -> tuple[int, int]:
        """Return (number of completed passes, micro-batches taken in the current pass)."""
        return self._committed

    def resume(self, state: tuple[int, int]) -> None:
        """Begin the saved pass again, and skip the micro-batches that the saved run has already
        taken.

        If `resume` raises an error, the position stays unchanged, but an iterator may have been
        read up to its end.

        Args:
            state: The pair (number of completed passes, micro-batches taken in the current pass).

        Raises:
            ValueError: The loader's order cannot be repeated, the loader gives fewer micro-batches
                than the saved run took, or the iterator is already past the saved position.
        """
        if state != (0, 0) and isinstance(self._loader, DataLoader):
            self._refuse_unrepeatable(self._loader)
        before, self._committed = self._committed, state
        if self._iterator is None:
            return
        try:
            self._open()
        except ValueError:
            self._committed = before
            if not self._is_iterator:
                self._open()
            raise

    def _wanted(self, batch_size: int) -> int:
        return -(-batch_size // (self._ranks * self._largest))

    def _take(self, accumulation: int) -> Iterator[tuple[Any, int]]:
        for _ in range(accumulation):
            self._hold()
            if self._held is None:
                return
            taken, self._held = self._held, None
            self._taken += 1
            yield taken

    def _hold(self) -> None:
        if self._held is not None or self._ended:
            return
        assert self._iterator is not None, "bind must be called before the first micro-batch"
        micro_batch = next(self._iterator, _END)
        if micro_batch is _END and self._taken and not self._is_iterator:
            self._begin(self._pass + 1)
            micro_batch = next(self._iterator, _END)
        if micro_batch is _END:
            self._end()
            return
        size = self._size_of(micro_batch)
        if size < 1:
            raise ValueError(
                f"size_of returned {size} samples for a micro-batch, but a "
                "micro-batch holds at least one sample. Pass a function that "
                "counts the samples: size_of=lambda batch: len(batch[0])."
            )
        self._held, self._largest = (micro_batch, size), max(self._largest, size)
        self._first = self._first or size

    def _end(self) -> None:
        if not self._is_iterator or self._taken == 0:
            raise ValueError(
                f"The {type(self._loader).__name__} gave no micro-batch in pass {self._pass}. Pass "
                "a loader that gives data in every pass. If the loader can be read only once, "
                "pass its iterator: BatchLoader(iter(loader), batch_size=64)."
            )
        self._ended = True

    def _begin(self, number: int) -> None:
        sampler = sampler_of(self._loader) if isinstance(self._loader, DataLoader) else None
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(number)
        self._iterator = iter(self._loader)
        self._is_iterator = self._iterator is self._loader
        self._pass, self._taken, self._held = number, 0, None
        self._first = self._largest = 0

    def _open(self) -> None:
        """Move to the position after the last committed micro-batch."""
        number, taken = self._committed
        if self._iterator is None or not self._is_iterator:
            self._begin(number)
        if self._taken > taken:
            raise ValueError(
                f"The iterator has already given {self._taken} micro-batches and cannot return "
                f"to {taken}. Load the state into a BatchLoader around a new iterator: "
                "BatchLoader(iter(loader), batch_size=64)."
            )
        for _ in range(taken - self._taken):
            self._hold()
            if self._held is None or self._pass != number:
                raise ValueError(
                    f"The state was saved after {taken} micro-batches of a pass, but this loader "
                    "gives fewer micro-batches per pass. Pass the same loader as in the saved run."
                )
            self._held = None
            self._taken += 1

    @staticmethod
    def _refuse_unrepeatable(loader: DataLoader[Any]) -> None:
        sampler = sampler_of(loader)
        if isinstance(sampler, _UNREPEATABLE):
            raise ValueError(
                f"The order of a DataLoader with a {type(sampler).__name__} cannot be "
                "repeated, so the run cannot resume where it stopped. Pass the data set itself, "
                "BatchLoader(dataset, batch_size=64, seed=0), or use a sampler whose order depends "
                "only on the pass: DistributedSampler(dataset, num_replicas=1, rank=0)."
            )


def _data_of(loader: Any) -> int | None:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return known_length(loader.dataset)
