"""Steps from a loader of the user's: its batches are the micro-batches."""

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

from largebatch.act.leading_size import doubt_of_size, leading_size
from largebatch.act.passes import known_length, sampler_of, samples_of_pass, sum_of_known
from largebatch.act.planned_step import PassCounts, PlannedStep

_END = object()
_UNREPEATABLE = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class OwnLoader:
    """The steps of a loader or an iterable; changes state as it is read.

    One that can be iterated again is repeated for ever, a new pass after each; an iterator ends. A
    step takes k whole micro-batches on this rank, the fewest whose samples reach its share,

        k = ceil(batch size / (ranks * size)),

    with `size` the largest micro-batch seen in this pass: the short one that ends a pass says
    nothing about the next. One micro-batch is held ahead, so that its size and the end of data are
    known before a step. Of an iterator all k are drawn before the first is given, since only then
    is it known which is the last.

    Args:
        loader: gives micro-batches; on several ranks, each rank its own.
        size_of: micro-batch -> samples in it.
        dataset_size: samples of a pass over all ranks, if the user gave it. None counts them: the
            sum of what each rank's loader gives in a pass (`samples_of_pass`), so a loader that is
            not sharded counts once for each rank that reads it.
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
        return self._counts

    def share(self, everyone: Sequence[PassCounts]) -> None:
        samples = [counts.samples for counts in everyone]
        data = [counts.data for counts in everyone]
        # a pass without samples is refused by `bind`
        self.dataset_size = self._given_size or sum_of_known(samples) or None
        # one data set that the ranks share, or a shard of its own for each
        self.stored_size = data[0] if len(set(data)) == 1 else sum_of_known(data)

    @property
    def exhausted(self) -> bool:
        self._hold()
        return self._ended

    def bind(
        self, *, batch_size: int, rank: int, ranks: int, least_parts: int, alike: bool
    ) -> None:
        self._ranks, self._least = ranks, -(-least_parts // ranks)
        if self._iterator is None:
            self._open()
        self._hold()
        if self._held is None:
            return  # a resumed iterator at its end
        size = self._first  # a resumed run is let in where the run was
        doubt = doubt_of_size(self._held[0]) if self._size_of is leading_size else ""
        if batch_size < ranks * size or -(-batch_size // (ranks * size)) < self._least:
            raise ValueError(
                f"A batch of {batch_size} samples over {ranks} ranks needs at least {self._least} "
                f"micro-batches a rank, but the loader's hold {size} samples each. Use a larger "
                f"batch, BatchLoader(loader, batch_size={ranks * size * self._least}), or smaller "
                f"micro-batches: DataLoader(dataset, batch_size="
                f"{max(batch_size // (ranks * self._least), 1)}).{doubt}"
            )

    def limit(self, most: int) -> None:
        raise AssertionError("the loader cuts its own micro-batches")

    def step(self, position: int, batch_size: int) -> PlannedStep | None:
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
        self._hold()
        held = [] if self._held is None else [self._held]
        return held, max(self._wanted(batch_size), self._least) if held else 0

    def coming(self, position: int, count: int) -> Any:
        return None

    def commit(self, planned: int, samples: int) -> None:
        self._committed = (self._pass, self._taken)

    def state(self) -> tuple[int, int]:
        return self._committed

    def resume(self, state: tuple[int, int]) -> None:
        """Begin that pass and read again, to drop it, what was taken from it.

        Where it cannot, it stands where it stood; but an iterator was read as far as it goes.

        Raises:
            ValueError: a loader whose order cannot be repeated, or that gives fewer micro-batches
                than were taken, or an iterator that is further on.
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
        assert self._iterator is not None, "bind comes before the first micro-batch"
        micro_batch = next(self._iterator, _END)
        if micro_batch is _END and self._taken and not self._is_iterator:
            self._begin(self._pass + 1)
            micro_batch = next(self._iterator, _END)
        if micro_batch is _END:
            self._end()
            return
        size = self._size_of(micro_batch)
        if size < 1:
            raise ValueError(f"A micro-batch holds at least one sample; size_of gave {size}.")
        self._held, self._largest = (micro_batch, size), max(self._largest, size)
        self._first = self._first or size

    def _end(self) -> None:
        if not self._is_iterator or self._taken == 0:
            raise ValueError(
                f"The {type(self._loader).__name__} gave no micro-batch in pass {self._pass}. Give "
                "one that holds data in every pass; if it can be read only once: "
                "BatchLoader(iter(loader), batch_size=64)"
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
        """Stand behind the last committed micro-batch."""
        number, taken = self._committed
        if self._iterator is None or not self._is_iterator:
            self._begin(number)
        if self._taken > taken:
            raise ValueError(
                f"The iterator has given {self._taken} micro-batches and cannot go back to "
                f"{taken}. Load the state into a BatchLoader around a new iterator."
            )
        for _ in range(taken - self._taken):
            self._hold()
            if self._held is None or self._pass != number:
                raise ValueError(
                    f"The state was saved after {taken} micro-batches of a pass, but this loader "
                    "gives fewer. Give the loader that the run was started with."
                )
            self._held = None
            self._taken += 1

    @staticmethod
    def _refuse_unrepeatable(loader: DataLoader[Any]) -> None:
        sampler = sampler_of(loader)
        if isinstance(sampler, _UNREPEATABLE):
            raise ValueError(
                f"The order of a DataLoader with a {type(sampler).__name__} cannot be "
                "repeated, so the run cannot go on where it stopped. Give the data set itself, "
                "BatchLoader(dataset, batch_size=64, seed=0), or a sampler whose order depends on "
                "the pass alone: DistributedSampler(dataset, num_replicas=1, rank=0)"
            )


def _data_of(loader: Any) -> int | None:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return known_length(loader.dataset)
