"""`BatchLoader` under any history of sizes, ranks, limits, interruptions and mistakes, beside naive
twins that hold the whole stream as plain lists."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.act.stream_twin import naive_chunks, naive_stream
from tests.fuzz.effort import effort
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from largebatch.act.loader import BatchLoader
from largebatch.core.errors import LargeBatchError, MicroBatchMissed, RecordError
from round_trips import through_json

MOST_RANKS = 4
Step = list[list[int]]
"""A step as it is dealt out: the samples of each micro-batch."""


class Items(Dataset[int]):
    """Read one sample at a time."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        assert 0 <= index < self.size
        return index


class Many(Items):
    """Read a micro-batch at a time."""

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [self[index] for index in indices]


def source_of(kind: str, size: int) -> Any:
    """The samples 0, 1, ... of an epoch in one of the forms that a user may have."""
    if kind == "tensor":
        return torch.arange(size)
    if kind == "tuple":
        return torch.arange(size), torch.arange(size)
    if kind == "tensors":
        return TensorDataset(torch.arange(size))
    if kind == "subset":
        shifted = torch.cat([torch.tensor([-1]), torch.arange(size)])
        return Subset(TensorDataset(shifted), range(1, size + 1))
    return Items(size) if kind == "items" else Many(size)


def numbers(micro_batch: Any) -> list[int]:
    tensor = micro_batch if isinstance(micro_batch, torch.Tensor) else micro_batch[0]
    found: list[int] = tensor.tolist()
    return found


def spoiled(state: dict[str, Any], field: str, by: Any) -> dict[str, Any]:
    """The state with one value changed, or left out."""
    spoiled = dict(state)
    value = spoiled.pop(field)
    if by is not None:
        spoiled[field] = (not value) if isinstance(value, bool) else (value or 0) + by
    return spoiled


FIELDS = (
    "version", "position", "batch_size", "seed", "shuffle", "dataset_size", "passes",
    "micro_batches", "digest",
)  # fmt: skip
spoilers = st.tuples(st.sampled_from(FIELDS), st.none() | st.sampled_from([1, -1, 7, 0.5]))
kinds = st.sampled_from(["tensor", "tuple", "tensors", "subset", "items", "many"])


class World(RuleBasedStateMachine):
    """Loaders bound as the ranks of one world, in one process.

    A subclass builds them and says what each step must give.
    """

    saved = Bundle("saved")
    loaders: list[BatchLoader]

    def __init__(self) -> None:
        super().__init__()
        self.loaders = []
        self.position, self.wish = 0, 1
        self.pending = False

    @property
    def ranks(self) -> int:
        return len(self.loaders)

    @rule(batch_size=st.integers(MOST_RANKS, 40))
    def resize(self, batch_size: int) -> None:
        for loader in self.loaders:
            loader.resize(batch_size)
        self.wish = batch_size

    @rule(batch_size=st.integers(-3, 0) | st.sampled_from([2.5, 8.0, "8", None, float("nan")]))
    def a_wrong_size_is_refused(self, batch_size: Any) -> None:
        for loader in self.loaders:
            with pytest.raises(ValueError, match="batch"):
                loader.resize(batch_size)

    @precondition(lambda self: self.ranks > 1)
    @rule()
    def fewer_samples_than_ranks_are_refused(self) -> None:
        for loader in self.loaders:
            with pytest.raises(ValueError, match="ranks"):
                loader.resize(self.ranks - 1)

    @rule(limit=st.integers(-2, 0))
    def a_limit_below_one_is_refused(self, limit: int) -> None:
        for loader in self.loaders:
            with pytest.raises(ValueError, match="limit"):
                loader.next_step(limit)

    @precondition(lambda self: not self.pending)
    @rule(samples=st.integers(0, 9))
    def committing_no_step_is_refused(self, samples: int) -> None:
        for loader in self.loaders:
            with pytest.raises(LargeBatchError, match="no step was requested since"):
                loader.commit(samples)

    @rule(spoiler=spoilers)
    def a_spoiled_state_is_refused_and_changes_nothing(self, spoiler: tuple[str, Any]) -> None:
        for loader in self.loaders:
            state = loader.state_dict()
            with pytest.raises((ValueError, RecordError)):
                loader.load_state_dict(spoiled(state, *spoiler))
            assert loader.state_dict() == state

    @rule(target=saved)
    def save(self) -> tuple[dict[str, Any], Any]:
        states = [loader.state_dict() for loader in self.loaders]
        assert all(state == states[0] for state in states)
        assert through_json(states[0]) == states[0]
        return through_json(states[0]), self.twin()

    def twin(self) -> Any:
        """What the naive twin must be put back to with a state."""
        raise NotImplementedError

    @invariant()
    def the_loaders_say_where_they_are(self) -> None:
        for loader in self.loaders:
            assert loader.position == self.position
            assert loader.batch_size == self.wish


class DataSets(World):
    """Of a data set: the stream does not depend on ranks, cuts or interruptions."""

    @initialize(
        size=st.integers(1, 30),
        seed=st.integers(-(2**65), 2**65) | st.integers(0, 3),
        shuffle=st.booleans(),
        ranks=st.integers(1, MOST_RANKS),
        wish=st.integers(MOST_RANKS, 40),
        kind=kinds,
        most=st.none() | st.integers(1, 12),
        least=st.integers(1, 3),
        alike=st.booleans(),
    )
    def build(
        self, *, size: int, seed: int, shuffle: bool, ranks: int, wish: int, **cut: Any
    ) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.stream: list[int] = []
        self.taken: list[int] = []
        self.wish = wish
        self.loaders = [self.loader(rank, ranks, wish=wish, **cut) for rank in range(ranks)]

    def loader(
        self,
        rank: int,
        ranks: int,
        *,
        wish: int,
        kind: str,
        most: int | None,
        least: int,
        alike: bool,
        state: dict[str, Any] | None = None,
        early: bool = False,
    ) -> BatchLoader:
        share = max(ranks, least) if alike else ranks
        self.most, self.least, self.alike = most or -(-wish // share), least, alike
        loader = BatchLoader(
            source_of(kind, self.size),
            batch_size=wish,
            max_micro_batch_size=most,
            seed=self.seed,
            shuffle=self.shuffle,
        )
        if state is not None and early:
            loader.load_state_dict(state)
        loader.bind(rank=rank, ranks=ranks, least_parts=least, alike=alike)
        if state is not None and not early:
            loader.load_state_dict(state)
        return loader

    def expected(self, batch_size: int) -> list[int]:
        """The next samples of the stream, which is written out as far as it is needed."""
        stop = self.position + batch_size
        if stop > len(self.stream):
            epochs = stop // self.size + 2
            self.stream = (
                naive_stream(self.size, seed=self.seed, epochs=epochs)
                if self.shuffle
                else list(range(self.size)) * epochs
            )
        return self.stream[self.position : stop]

    @rule(limit=st.none() | st.integers(1, 40), commit=st.booleans(), read=st.integers(0, 9))
    def step(self, *, limit: int | None, commit: bool, read: int) -> None:
        """A step that is taken, or left after so many micro-batches."""
        size = self.wish if limit is None else min(self.wish, max(limit, self.ranks))
        given: list[Step] = []
        for loader in self.loaders:
            step = loader.next_step(limit)
            assert step is not None
            assert step.batch_size == size
            micro_batches = []
            for at, (micro_batch, samples) in enumerate(step):
                if not commit and at == read:
                    break
                micro_batches.append(numbers(micro_batch))
                assert len(micro_batches[-1]) == samples
            else:
                assert len(micro_batches) == step.accumulation
            given.append(micro_batches)
        self.pending = True
        expected = self.expected(size)
        parts = max(-(-size // self.most), self.least)
        if self.alike:
            parts = next(n for n in [1, 2, 4, *range(8, 80, 8)] if n >= parts)
        k = -(-parts // self.ranks)
        k = max(min(k, size // self.ranks), 1)
        chunks = naive_chunks(expected, parts=k * self.ranks)
        for rank, micro_batches in enumerate(given):
            assert micro_batches == chunks[rank :: self.ranks][: len(micro_batches)]
            most = self.most + (self.most == 1 and size % self.ranks > 0)  # equally many on each
            assert all(1 <= len(one) <= most for one in micro_batches)
        if commit:
            self.commit(size)
            self.taken += expected

    def commit(self, size: int) -> None:
        for loader in self.loaders:
            with pytest.raises(MicroBatchMissed):
                loader.commit(size + 1)
            loader.commit(size)
        self.position += size
        self.pending = False

    def twin(self) -> tuple[int, int, int]:
        return self.position, self.wish, len(self.taken)

    @rule(
        saved=World.saved,
        ranks=st.integers(1, MOST_RANKS),
        first=st.integers(MOST_RANKS, 40),
        kind=kinds,
        most=st.none() | st.integers(1, 12),
        least=st.integers(1, 3),
        alike=st.booleans(),
        early=st.booleans(),
    )
    def resume(self, *, saved: Any, ranks: int, first: int, **options: Any) -> None:
        """New loaders, on any number of ranks, that were built with another first batch."""
        state, (self.position, self.wish, taken) = saved
        del self.taken[taken:]
        self.taken += self.stream[len(self.taken) : self.position]  # another branch of the run
        self.loaders = [
            self.loader(rank, ranks, wish=first, state=state, **options) for rank in range(ranks)
        ]
        self.pending = False

    @rule(saved=World.saved)
    def go_back(self, saved: Any) -> None:
        """The same loaders load a state of before, perhaps within a step."""
        state, (self.position, self.wish, taken) = saved
        del self.taken[taken:]
        self.taken += self.stream[len(self.taken) : self.position]
        for loader in self.loaders:
            loader.load_state_dict(state)
        self.pending = False

    @rule(wrong=st.sampled_from(["seed", "shuffle", "size"]))
    def another_runs_state_is_refused(self, wrong: str) -> None:
        other = BatchLoader(
            torch.arange(self.size + (wrong == "size")),
            batch_size=self.wish,
            seed=self.seed + (wrong == "seed"),
            shuffle=self.shuffle != (wrong == "shuffle"),
        )
        with pytest.raises(ValueError, match="was saved with"):
            other.load_state_dict(self.loaders[0].state_dict())
        assert other.position == 0

    @invariant()
    def each_epoch_holds_each_sample_once(self) -> None:
        if not self.loaders:
            return
        assert len(self.taken) == self.position
        for start in range(0, len(self.taken), self.size):
            epoch = self.taken[start : start + self.size]
            assert len(set(epoch)) == len(epoch)
            assert len(epoch) < self.size or sorted(epoch) == list(range(self.size))
        for loader in self.loaders:
            assert loader.dataset_size == self.size
            assert not loader.exhausted


class Again:
    """A loader that can be iterated again."""

    def __init__(self, micro_batches: list[torch.Tensor]) -> None:
        self.micro_batches = micro_batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.micro_batches)


class OwnTwin:
    """One rank's micro-batches by a list and a finger in it."""

    def __init__(self, micro_batches: list[torch.Tensor], *, endless: bool) -> None:
        self.whole = [one.tolist() for one in micro_batches]
        self.endless = endless
        self.number = self.at = 0
        self.committed = (0, 0)

    @property
    def left(self) -> bool:
        """Whether there is another micro-batch; at the end of a pass the next one begins."""
        if self.at == len(self.whole) and self.endless:
            self.number, self.at = self.number + 1, 0
        return self.at < len(self.whole)

    def step(self, share: float, *, least: int) -> Step:
        """The fewest micro-batches that reach the share, if they are as large as the largest that
        was seen in this pass."""
        if not self.left:
            return []
        largest = max(len(one) for one in self.whole[: self.at + 1])
        step = []
        for _ in range(max(int(-(-share // largest)), least)):
            if not self.left:
                break
            step.append(self.whole[self.at])
            self.at += 1
        return step


@st.composite
def ready(draw: st.DrawFn) -> list[torch.Tensor]:
    """Micro-batches of one rank's pass, of any sizes up to that of the first."""
    first = draw(st.integers(1, 5))
    sizes = [first, *draw(st.lists(st.integers(1, 7), max_size=7))]
    return list(torch.arange(sum(sizes)).split(sizes))


class Loaders(World):
    """Of a loader of the user's, whose batches are the micro-batches."""

    @initialize(
        data=st.data(),
        ranks=st.integers(1, 3),
        kind=st.sampled_from(["again", "iterator", "DataLoader"]),
        extra=st.integers(0, 20),
        least=st.integers(1, 4),
    )
    def build(self, data: st.DataObject, *, ranks: int, kind: str, extra: int, least: int) -> None:
        self.kind, self.least = kind, least
        one = data.draw(ready())
        self.whole = [one if kind == "DataLoader" else data.draw(ready()) for _ in range(ranks)]
        parts = -(-least // ranks)
        self.first = self.wish = ranks * parts * max(len(w[0]) for w in self.whole) + extra
        self.twins = [OwnTwin(w, endless=kind != "iterator") for w in self.whole]
        self.loaders = [self.loader(rank) for rank in range(ranks)]

    def loader(self, rank: int, *, state: dict[str, Any] | None = None) -> BatchLoader:
        source: Any = Again(self.whole[rank])
        if self.kind == "iterator":
            source = iter(source)
        if self.kind == "DataLoader":
            lengths = [len(one) for one in self.whole[rank]]
            ends = [sum(lengths[: at + 1]) for at in range(len(lengths))]
            cuts = [list(range(stop - n, stop)) for n, stop in zip(lengths, ends, strict=True)]
            source = DataLoader(Items(ends[-1]), batch_sampler=cuts)
        loader = BatchLoader(source, batch_size=self.first)
        if state is not None:
            loader.load_state_dict(state)
        loader.bind(rank=rank, ranks=len(self.whole), least_parts=self.least)
        return loader

    @rule(limit=st.none() | st.integers(1, 60), commit=st.booleans())
    def step(self, *, limit: int | None, commit: bool) -> None:
        size = self.wish if limit is None else min(self.wish, max(limit, self.ranks))
        least = -(-self.least // self.ranks)
        samples, ended = 0, 0
        for twin, loader in zip(self.twins, self.loaders, strict=True):
            assert loader.exhausted == (not twin.left)
            step, expected = loader.next_step(limit), twin.step(size / self.ranks, least=least)
            if step is None:
                assert expected == []
                ended += 1
                continue
            found = [(numbers(micro_batch), count) for micro_batch, count in step]
            assert found == [(one, len(one)) for one in expected]
            assert step.accumulation == len(expected)
            samples += sum(map(len, expected))
        self.pending = ended < self.ranks
        if commit and not ended:
            for twin, loader in zip(self.twins, self.loaders, strict=True):
                loader.commit(samples)
                twin.committed = (twin.number, twin.at)
            self.position += samples
            self.pending = False
        elif ended:
            self.after_the_end(commit)

    def after_the_end(self, commit: bool) -> None:
        """Ranks whose step is None have none to commit."""
        for loader in self.loaders:
            if loader.exhausted and commit:
                with pytest.raises(LargeBatchError):
                    loader.commit(1)
        self.resume((self.states(), self.twin()))

    def states(self) -> list[dict[str, Any]]:
        return [through_json(loader.state_dict()) for loader in self.loaders]

    @rule(target=World.saved)
    def save(self) -> tuple[list[dict[str, Any]], Any]:
        return self.states(), self.twin()

    def twin(self) -> Any:
        return self.position, self.wish, [copy.copy(twin.committed) for twin in self.twins]

    @rule(saved=World.saved)
    def resume(self, saved: Any) -> None:
        states, (self.position, self.wish, committed) = saved
        for twin, (number, at) in zip(self.twins, committed, strict=True):
            twin.number, twin.at, twin.committed = number, at, (number, at)
        self.loaders = [self.loader(rank, state=state) for rank, state in enumerate(states)]
        self.pending = False

    @precondition(lambda self: self.kind != "iterator")
    @rule(saved=World.saved)
    def go_back(self, saved: Any) -> None:
        states, (self.position, self.wish, committed) = saved
        for twin, (number, at) in zip(self.twins, committed, strict=True):
            twin.number, twin.at, twin.committed = number, at, (number, at)
        for loader, state in zip(self.loaders, states, strict=True):
            loader.load_state_dict(state)
        self.pending = False

    @rule(saved=consumes(World.saved), cut=st.integers(1, 3))
    def a_loader_that_gives_less_is_refused_and_stays_where_it_was(
        self, saved: Any, cut: int
    ) -> None:
        states, (_, _, committed) = saved
        for rank, (state, (_, at)) in enumerate(zip(states, committed, strict=True)):
            if at < 1:
                continue
            shorter = self.whole[rank][: max(at - cut, 0)] or self.whole[rank][:0]
            source: Any = Again(shorter)
            if self.kind == "DataLoader" or not shorter:
                continue
            loader = BatchLoader(
                iter(source) if self.kind == "iterator" else source, batch_size=self.first
            )
            loader.bind(rank=rank, ranks=self.ranks, least_parts=self.least)
            before = loader.state_dict()
            with pytest.raises(ValueError, match="gives fewer"):
                loader.load_state_dict(state)
            assert loader.state_dict() == before


DataSets.TestCase.settings = effort(60, steps=15)
Loaders.TestCase.settings = effort(60, steps=15)
TestDataSets = DataSets.TestCase
TestLoaders = Loaders.TestCase
