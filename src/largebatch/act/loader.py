"""Define `BatchLoader`, which cuts batches of changing size into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from largebatch.act.own_loader import OwnLoader
from largebatch.act.planned_step import PlannedStep
from largebatch.act.sources import Options, open_source
from largebatch.core.codec import checksum, decode, encode
from largebatch.core.errors import LargeBatchError, RecordError
from largebatch.measure.ranks import Ranks

VERSION = 2
"""Version of the saved state; a state of another version describes the position in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """Describe the position of a run in its data.

    Args:
        version: Version of this state's format.
        position: Number of samples taken so far, over all ranks.
        batch_size: Planned number of samples in the next step, over all ranks.
        seed: Seed of the sample order.
        shuffle: Whether the samples of each epoch are permuted.
        dataset_size: Number of samples in the data set, or in the data set behind your own data
            loader; None if unknown.
        passes: Number of passes that your own data loader has completed.
        micro_batches: Number of micro-batches taken on this rank in the current pass.
        max_micro_batch_size: Largest number of samples in one micro-batch, if it was given or
            found.
        digest: Checksum of all other fields.
    """

    version: int
    position: int
    batch_size: int
    seed: int
    shuffle: bool
    dataset_size: int | None
    passes: int
    micro_batches: int
    max_micro_batch_size: int | None
    digest: int = 0


class BatchLoader:
    """Deliver batches of changing size as micro-batches; `resize`, `next_step` and `commit` change
    state.

    A data set becomes an endless stream of permutations perm_0, perm_1, ..., each computed from
    (seed, epoch). Each step takes the next batch of the stream, cut into micro-batches by
    `BatchPlan`. The samples and their order therefore do not depend on the number of ranks or
    workers, on the micro-batch sizes, or on interruptions of the run. A tensor is indexed as a
    whole, and a data set with `__getitems__` is called once per micro-batch; neither needs a
    `DataLoader`.

    >>> from torch import arange
    >>> loader = BatchLoader(arange(10), batch_size=4, max_micro_batch_size=2, shuffle=False)
    >>> loader.bind(rank=0, ranks=1, least_parts=1)
    >>> [(micro_batch.tolist(), size) for micro_batch, size in loader.next_step()]
    [([0, 1], 2), ([2, 3], 2)]
    >>> loader.commit(4)

    Args:
        source: A map-style data set; a tensor `[N, ...]` or a tuple of such tensors; or a
            `DataLoader` or other iterable whose batches are the micro-batches (`OwnLoader`
            describes how these batches are counted, repeated and resumed). On several ranks, pass
            the same data set on every rank; a loader gives each rank its own samples.
        batch_size: Number of samples in the first step, over all ranks.
        max_micro_batch_size: Largest number of samples in one micro-batch on one rank; larger
            batches are accumulated. If omitted, the size is each rank's share of the first batch,
            which is assumed to fit into memory. If a rule sets the batch size by measuring, the
            default is at most half of the first batch. With "auto", `lb.fit_micro_batch` finds the
            largest size that fits into memory before the first step, and a resumed run keeps that
            size.
        seed: Seed of the permutations and of the samples' randomness.
        shuffle: Whether the samples of each epoch are permuted.
        collate: Function (list of samples) -> micro-batch; by default torch's `default_collate`.
        num_workers: Number of worker processes that read ahead; 0 reads in this process.
        worker_options: Arguments of the workers' `DataLoader`: pin_memory, prefetch_factor,
            multiprocessing_context, timeout, worker_init_fn.
        seed_samples: Whether to seed Python's, NumPy's and torch's global CPU generators before
            each sample, so that augmentation is a function of (seed, position). A data set with
            `__getitems__` is seeded once per call, by the first sample of the call. Seeding takes
            about 20 microseconds per sample: little compared with decoding an image, but more than
            reading one row of numbers takes. Pass False if the data set draws no random numbers.
            Tensors are never seeded.
        size_of: Function (micro-batch of your own data loader) -> number of samples in it; by
            default the first dimension of the first tensor found.
        dataset_size: Number of samples in one pass of your own data loader over all ranks. Pass
            `dataset_size` if the samplers do not show the number: for an `IterableDataset`, a
            sampler without a length, or an iterable that is not a `DataLoader`. If None, the
            samples are counted as `OwnLoader` describes.

    Raises:
        ValueError: A size is below 1, the source cannot be read, or an option does not apply to the
            source.
    """

    def __init__(
        self,
        source: Dataset[Any] | Tensor | tuple[Tensor, ...] | Iterable[Any],
        *,
        batch_size: int,
        max_micro_batch_size: int | Literal["auto"] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        collate: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        worker_options: Mapping[str, Any] | None = None,
        seed_samples: bool = True,
        size_of: Callable[[Any], int] | None = None,
        dataset_size: int | None = None,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                f"batch_size={batch_size} was given, but it must be a whole number of at least "
                "1. For example: batch_size=64."
            )
        options = Options(
            max_micro_batch_size=max_micro_batch_size,
            seed=seed,
            shuffle=shuffle,
            collate=collate,
            num_workers=num_workers,
            worker_options=worker_options,
            seed_samples=seed_samples,
            size_of=size_of,
            dataset_size=dataset_size,
        )
        self._size_was_given = dataset_size is not None
        self._given, self._source = source, open_source(source, options)
        self._seed, self._shuffle = seed, shuffle
        self._wants_fit = max_micro_batch_size == "auto"
        self._most = None if max_micro_batch_size == "auto" else max_micro_batch_size
        self._first_batch_size = self._batch_size = batch_size
        self._position = self._ranks = 0
        self._step: PlannedStep | None = None
        self._in_use = False

    def share(self, ranks: Ranks) -> None:
        """Exchange the number of samples per pass between the ranks; the controller calls this
        before `bind`.

        The exchange takes one collective operation, and none on a single process.
        """
        self._source.share(ranks.gather(self._source.counts()))

    def bind(self, *, rank: int, ranks: int, least_parts: int, alike: bool = False) -> None:
        """Set which processes share the batches; the controller calls this before the first step.

        Args:
            rank: Rank of this process.
            ranks: Number of processes that share each batch.
            least_parts: Smallest number of micro-batches per step, over all ranks.
            alike: Whether the micro-batches must be the same on 1, 2, 4 and 8 ranks, as `BatchPlan`
                describes.

        Raises:
            ValueError: A batch has fewer samples than there are ranks, a loader has no data or its
                micro-batches are too large for the batch, or another controller already uses this
                loader.
        """
        if self._in_use:
            raise ValueError(
                "Another lb.Controller already uses this BatchLoader. Build one BatchLoader per "
                "controller: BatchLoader(dataset, batch_size=64)."
            )
        self._check_shared(min(self._first_batch_size, self._batch_size), ranks)
        self._source.bind(
            batch_size=self._first_batch_size,
            rank=rank,
            ranks=ranks,
            least_parts=least_parts,
            alike=alike,
        )
        self._ranks = ranks
        if self._wants_fit and self._most is not None:
            self._source.limit(self._most)

    @property
    def batch_size(self) -> int:
        """Number of samples planned for the next step, over all ranks."""
        return self._batch_size

    @property
    def source(self) -> Any:
        """Data set, tensors or loader that was passed to this BatchLoader."""
        return self._given

    @property
    def max_micro_batch_size(self) -> int | Literal["auto"] | None:
        """Largest number of samples in one micro-batch on one rank, as given or found.

        The value is "auto" until `lb.fit_micro_batch` has found the size, and None if no size was
        given.
        """
        return "auto" if self._wants_fit and self._most is None else self._most

    @property
    def wants_fit(self) -> bool:
        """Whether the user asked for the largest micro-batch that fits, with "auto"."""
        return self._wants_fit

    @property
    def dataset_size(self) -> int | None:
        """Number of samples in one pass, over all ranks after `share`; None if unknown."""
        return self._source.dataset_size

    @property
    def counts_passes(self) -> bool:
        """Whether `dataset_size` was counted from the samplers of the user's own data loader."""
        return isinstance(self._source, OwnLoader) and not self._size_was_given

    @property
    def position(self) -> int:
        """Number of samples that committed steps have taken from the stream, over all ranks."""
        return self._position

    @property
    def exhausted(self) -> bool:
        """Whether this rank has no data for another step; only an iterator can be exhausted."""
        return self._ranks > 0 and self._source.exhausted

    def resize(self, batch_size: int) -> None:
        """Set the number of samples planned for the next step, over all ranks.

        Raises:
            ValueError: The number is not whole, or it is below one sample per rank.
        """
        self._check_shared(batch_size, max(self._ranks, 1))
        self._batch_size = batch_size

    def fit(self, size: int) -> None:
        """Set the largest micro-batch size that was found to fit into memory, in samples."""
        assert self._wants_fit, 'fit needs max_micro_batch_size="auto"'
        self._most = size
        if self._ranks:
            self._source.limit(size)

    def next_step(self, limit: int | None = None) -> PlannedStep | None:
        """Return the step that follows the last committed one; None if this rank has no more data.

        If a step of a data set was not committed, the next call returns the same step again.

        Args:
            limit: Number of samples left in the run's budget, at least 1. The step has at most
                `limit` samples, but at least one sample per rank.

        Raises:
            ValueError: The limit is below 1, or a loader gives no data in a later pass.
            LargeBatchError: No controller has bound the loader, or max_micro_batch_size="auto" was
                given and the size was not found yet.
        """
        self._check_bound()
        if self.max_micro_batch_size == "auto":
            raise LargeBatchError(
                'max_micro_batch_size="auto" was given, but the largest micro-batch that fits was '
                "not found yet. Find the size before the first step, with the loss of your loop: "
                "lb.fit_micro_batch(control, lambda model, batch: "
                "loss_fn(model(batch[0]), batch[1]))."
            )
        wish = self._batch_size
        if limit is not None and limit < wish:
            if limit < 1:
                raise ValueError(
                    f"limit={limit} was given, but it must be at least 1 sample, or "
                    "None for no limit: loader.next_step(limit=None)."
                )
            wish = max(limit, self._ranks)
        self._in_use = True
        self._step = step = self._source.step(self._position, wish)
        return step

    def peek(self, most: int) -> tuple[list[tuple[Any, int]], int]:
        """Return this rank's next micro-batches with their sizes, and the number of them in the
        next step.

        The call takes no sample from the stream. For your own data loader, the result has only the
        one micro-batch that was read ahead.

        Args:
            most: Largest number of micro-batches to return.

        Raises:
            LargeBatchError: No controller has bound the loader.
        """
        self._check_bound()
        return self._source.peek(self._position, self._batch_size, most)

    def coming(self, count: int) -> Any:
        """Return the next samples of the stream as one micro-batch, the same on every rank.

        The call takes no sample from the stream. The result is None for your own data loader, which
        gives each rank its own samples.

        Args:
            count: Number of samples to return.

        Raises:
            LargeBatchError: No controller has bound the loader.
        """
        self._check_bound()
        return self._source.coming(self._position, count)

    def commit(self, step_samples: int) -> None:
        """Confirm that the last step was taken, and only then advance the position in the stream.

        Args:
            step_samples: Actual number of samples in the step, over all ranks.

        Raises:
            MicroBatchMissed: The number differs from the number that was planned for a step of a
                data set.
            LargeBatchError: No step was requested since the last commit.
        """
        if self._step is None:
            raise LargeBatchError(
                "loader.commit() was called, but no step was requested since "
                "the last commit. Request a step first: step = "
                "loader.next_step()."
            )
        self._source.commit(self._step.batch_size, step_samples)
        self._step = None
        self._position += step_samples

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last committed step as plain values.

        The state is the same on every rank, except if your own data loaders give the ranks unequal
        numbers of micro-batches.
        """
        passes, micro_batches = self._source.state()
        state = LoaderState(
            version=VERSION,
            position=self._position,
            batch_size=self._batch_size,
            seed=self._seed,
            shuffle=self._shuffle,
            dataset_size=self._source.stored_size,
            passes=passes,
            micro_batches=micro_batches,
            max_micro_batch_size=self._most,
        )
        plain: dict[str, Any] = encode(replace(state, digest=checksum(state)))
        return plain

    def load_state_dict(self, plain: Mapping[str, Any]) -> None:
        """Resume from a saved `state_dict`, on any number of ranks and workers.

        With max_micro_batch_size="auto", steps are cut as in the saved run. Your own data loader is
        read again from the start of the saved pass up to the saved position.

        Raises:
            ValueError: The seed, the order, the data set or the version differs from the saved one,
                or the loader cannot return to the saved position.
            RecordError: The value is not a state of a BatchLoader, or it is corrupted.
        """
        state: LoaderState = decode(LoaderState, plain, where="the BatchLoader's state")
        here = {
            "version": VERSION,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "dataset_size": self._source.stored_size,
        }
        for name, value in here.items():
            saved = getattr(state, name)
            if saved != value:
                raise ValueError(
                    f"The state was saved with {name}={saved}, but this BatchLoader has "
                    f"{name}={value}, so it would continue with other samples. Build the "
                    "BatchLoader with the saved value, or start a new run."
                )
        if state.digest != checksum(state):
            raise RecordError(
                "The BatchLoader's state is corrupted: its values do not match its checksum. "
                "Load an earlier checkpoint."
            )
        self._check_shared(state.batch_size, max(self._ranks, 1))
        self._source.resume((state.passes, state.micro_batches))
        if self._wants_fit and state.max_micro_batch_size is not None:
            self.fit(state.max_micro_batch_size)
        self._position, self._batch_size = state.position, state.batch_size
        self._step = None  # the step belongs to the old position

    def _check_bound(self) -> None:
        if not self._ranks:
            raise LargeBatchError(
                "This BatchLoader is not bound to a run yet, so it cannot give steps. Pass it to "
                "lb.Controller, or call loader.bind(rank=0, ranks=1, least_parts=1)."
            )

    @staticmethod
    def _check_shared(batch_size: int, ranks: int) -> None:
        if not isinstance(batch_size, int):
            raise ValueError(
                f"batch_size={batch_size!r} was given, but it must be a whole number of samples. "
                "Round the number: control.resize(int(1.5 * control.batch_size))."
            )
        if batch_size < ranks:
            raise ValueError(
                f"A batch of {batch_size} samples cannot be shared by {ranks} ranks, because each "
                f"rank needs at least one sample. Use batch_size={ranks} or more, or fewer ranks."
            )
