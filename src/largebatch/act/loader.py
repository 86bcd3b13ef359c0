"""`BatchLoader`: batches whose size may change at every step, cut into micro-batches."""

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
"""Of the stored state; one with another version names another place in the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """Where a run stands in its data.

    Args:
        version: of this form.
        position: samples taken over all ranks.
        batch_size: the wish for the next step.
        seed: of the stream.
        shuffle: whether epochs are permuted.
        dataset_size: samples of the data set, for a loader of the user's of the one behind it; None
            where unknown.
        passes: passes that a loader of the user's has completed.
        micro_batches: taken on this rank in the pass after them.
        max_micro_batch_size: most samples of one micro-batch, where it was given or found.
        digest: of all the others.
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
    """The sample stream and its micro-batches; changes state in `resize`, `next_step` and `commit`.

    A data set becomes an endless stream perm_0, perm_1, ... by (seed, epoch). Each step takes the
    next batch of it, cut as `BatchPlan` says, so the samples and their order do not depend on the
    number of ranks or workers, on micro-batch sizes or on where a run was interrupted. Tensors are
    indexed whole and `__getitems__` is called once a micro-batch, both without a `DataLoader`.

    >>> from torch import arange
    >>> loader = BatchLoader(arange(10), batch_size=4, max_micro_batch_size=2, shuffle=False)
    >>> loader.bind(rank=0, ranks=1, least_parts=1)
    >>> [(micro_batch.tolist(), size) for micro_batch, size in loader.next_step()]
    [([0, 1], 2), ([2, 3], 2)]
    >>> loader.commit(4)

    Args:
        source: a map-style data set; a tensor `[N, ...]` or a tuple of such; or a `DataLoader` or
            other iterable, whose batches are the micro-batches (`OwnLoader` says how they are
            counted, repeated and resumed). On several ranks all have the same data set; a loader
            gives each rank its own samples.
        batch_size: samples of the first step over all ranks.
        max_micro_batch_size: most samples of one micro-batch on one rank. By default each rank's
            share of the first batch, the size that the user has shown to fit, and half of that
            batch at most where a rule sets the batch by what it measures; what is larger later is
            accumulated. "auto" is the largest that fits into memory: the controller finds it
            before the first step (`lb.fit_micro_batch`), and a resumed run keeps it.
        seed: of the permutations and of the samples' randomness.
        shuffle: whether epochs are permuted.
        collate: list of samples -> micro-batch, by default torch's `default_collate`.
        num_workers: processes that read ahead; 0 reads in this one.
        worker_options: arguments of the workers' `DataLoader`: pin_memory, prefetch_factor,
            multiprocessing_context, timeout, worker_init_fn.
        seed_samples: whether Python's, NumPy's and torch's global CPU generators are seeded before
            each sample (each `__getitems__` call: by its first sample), so that augmentation is a
            function of (seed, position). It costs about 20 microseconds a sample: nothing beside
            decoding an image, but more than reading a row, and a data set that draws nothing can
            save it. Tensors never pay it.
        size_of: micro-batch of a loader -> samples in it, by default the first dimension of the
            first tensor found.
        dataset_size: samples of one pass of a loader over all ranks, where its samplers do not show
            it: an `IterableDataset`, a sampler without a length, an iterable that is no
            `DataLoader`. None counts them as `OwnLoader` says.

    Raises:
        ValueError: sizes below 1, a source that cannot be read, or an option that it has no use
            for.
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
                f"batch_size is a whole number, at least 1, as in batch_size=64; got {batch_size}."
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
        """Count the samples of a pass over all ranks, which each knows of its own loader; the
        controller does so before `bind`. One collective, none on a single process."""
        self._source.share(ranks.gather(self._source.counts()))

    def bind(self, *, rank: int, ranks: int, least_parts: int, alike: bool = False) -> None:
        """Say who shares the batches; the controller does so before the first step.

        Args:
            rank: of this process.
            ranks: processes that share each batch.
            least_parts: fewest micro-batches of a step over all ranks.
            alike: whether they are to be the same on 1, 2, 4 and 8 ranks, as `BatchPlan` says.

        Raises:
            ValueError: fewer samples than ranks in a batch, a loader without data or with
                micro-batches too large for the batch, or a loader already in use.
        """
        if self._in_use:
            raise ValueError(
                "This BatchLoader serves another controller already. Build one for each: "
                "BatchLoader(dataset, batch_size=64)"
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
        """Samples wished for the next step, over all ranks."""
        return self._batch_size

    @property
    def source(self) -> Any:
        """The data set, tensors or loader that it was given."""
        return self._given

    @property
    def max_micro_batch_size(self) -> int | Literal["auto"] | None:
        """Most samples of one micro-batch on one rank, as given or found; "auto" until then."""
        return "auto" if self._wants_fit and self._most is None else self._most

    @property
    def wants_fit(self) -> bool:
        """Whether the largest micro-batch that fits was asked for."""
        return self._wants_fit

    @property
    def dataset_size(self) -> int | None:
        """Samples of one pass, once the ranks have shared it over all ranks; None if unknown."""
        return self._source.dataset_size

    @property
    def counts_passes(self) -> bool:
        """Whether `dataset_size` was counted from the samplers of a loader of the user's."""
        return isinstance(self._source, OwnLoader) and not self._size_was_given

    @property
    def position(self) -> int:
        """Samples of the stream taken by committed steps, over all ranks."""
        return self._position

    @property
    def exhausted(self) -> bool:
        """Whether this rank has no data for another step, which only an iterator can come to."""
        return self._ranks > 0 and self._source.exhausted

    def resize(self, batch_size: int) -> None:
        """Wish for the next step's samples over all ranks.

        Raises:
            ValueError: fewer than one a rank.
        """
        self._check_shared(batch_size, max(self._ranks, 1))
        self._batch_size = batch_size

    def fit(self, size: int) -> None:
        """The largest micro-batch that fits was found to have so many samples."""
        assert self._wants_fit, "only where it was asked for"
        self._most = size
        if self._ranks:
            self._source.limit(size)

    def next_step(self, limit: int | None = None) -> PlannedStep | None:
        """The next step, from the last committed one on; None when this rank has no more data.

        A data set's step that was not committed is given again.

        Args:
            limit: samples left in the run's budget, at least 1: the step has no more, but one a
                rank.

        Raises:
            ValueError: a limit below 1, or a loader that gives nothing in a later pass.
            LargeBatchError: no controller has bound the loader, or the largest micro-batch that
                fits was asked for and not yet found.
        """
        self._check_bound()
        if self.max_micro_batch_size == "auto":
            raise LargeBatchError(
                'max_micro_batch_size="auto" is found before the first step, by the loss as in '
                "the loop: lb.fit_micro_batch(control, lambda model, batch: "
                "loss_fn(model(batch[0]), batch[1]))"
            )
        wish = self._batch_size
        if limit is not None and limit < wish:
            if limit < 1:
                raise ValueError(f"limit is at least 1 sample, or None for no limit; got {limit}.")
            wish = max(limit, self._ranks)
        self._in_use = True
        self._step = step = self._source.step(self._position, wish)
        return step

    def peek(self, most: int) -> tuple[list[tuple[Any, int]], int]:
        """At most so many of this rank's coming micro-batches with their samples, and how many the
        coming step has; nothing is taken. Of a loader of the user's, the one that is held ahead.

        Raises:
            LargeBatchError: no controller has bound the loader.
        """
        self._check_bound()
        return self._source.peek(self._position, self._batch_size, most)

    def coming(self, count: int) -> Any:
        """The next samples of the stream as one micro-batch, the same on every rank; nothing is
        taken. None for a loader of the user's, which gives each rank its own.

        Raises:
            LargeBatchError: no controller has bound the loader.
        """
        self._check_bound()
        return self._source.coming(self._position, count)

    def commit(self, step_samples: int) -> None:
        """The last step was taken: only now does the position move.

        Args:
            step_samples: its true samples over all ranks.

        Raises:
            MicroBatchMissed: not the samples that a data set's step was planned with.
            LargeBatchError: no step since the last commit.
        """
        if self._step is None:
            raise LargeBatchError("Each step is committed once: step = loader.next_step()")
        self._source.commit(self._step.batch_size, step_samples)
        self._step = None
        self._position += step_samples

    def state_dict(self) -> dict[str, Any]:
        """Plain values that say where the run stands after the last committed step; the same on
        every rank, but for loaders of the user's that give ranks unequal numbers of micro-batches.
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
        """Go on where a `state_dict` was taken, on any number of ranks and workers. With
        max_micro_batch_size="auto" steps are cut as they were there.

        A loader of the user's is read again from the start of its pass up to there.

        Raises:
            ValueError: another seed, order, data set or version, or a loader that cannot go there.
            RecordError: something that is no such state.
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
                    f"The state was saved with {name}={saved}, but this BatchLoader has {value}: "
                    "it would go on with other samples. Build it as it was, or start a new run."
                )
        if state.digest != checksum(state):
            raise RecordError(
                "The BatchLoader's state is damaged: its values are not those that were written. "
                "Take the checkpoint before it."
            )
        self._check_shared(state.batch_size, max(self._ranks, 1))
        self._source.resume((state.passes, state.micro_batches))
        if self._wants_fit and state.max_micro_batch_size is not None:
            self.fit(state.max_micro_batch_size)
        self._position, self._batch_size = state.position, state.batch_size
        self._step = None  # of another place

    def _check_bound(self) -> None:
        if not self._ranks:
            raise LargeBatchError(
                "A BatchLoader gives steps once it is bound. Hand it to a Controller, or "
                "loader.bind(rank=0, ranks=1, least_parts=1)"
            )

    @staticmethod
    def _check_shared(batch_size: int, ranks: int) -> None:
        if not isinstance(batch_size, int):
            raise ValueError(
                f"A batch is a whole number of samples; got {batch_size!r}. Round it: "
                "control.resize(int(1.5 * control.batch_size))."
            )
        if batch_size < ranks:
            raise ValueError(
                f"A batch of {batch_size} samples cannot be shared by {ranks} ranks: each needs at "
                f"least one. Use batch_size={ranks} or more, or fewer ranks."
            )
