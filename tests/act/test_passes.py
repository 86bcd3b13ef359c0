"""An epoch is what a loader's samplers give in one pass, counted without reading a sample."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import largebatch as lb
from largebatch.act.passes import sampler_of, samples_of_pass
from small_runs import data, sgd, small_model, train

DATA = TensorDataset(*data(1000))

Make = Callable[[], DataLoader[Any]]


class Reversed(Sampler[int]):
    """A sampler of the user's own: every fifth sample, from the last one on."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(999, 0, -5))

    def __len__(self) -> int:
        return 200


class Endless(Sampler[int]):
    """A sampler without a length."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(1000)


class Buckets(Sampler[list[int]]):
    """A batch sampler of the user's own: batches of unequal size, from every kind of generator."""

    def __init__(self) -> None:
        self.own = torch.Generator().manual_seed(3)
        self.numbers = np.random.default_rng(4)

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(1000, generator=self.own).tolist()
        taken = int(self.numbers.integers(1, 5))
        for number in range(12):
            size = (
                5 + number + random.randrange(1) + int(torch.randint(1, ())) + np.random.randint(1)
            )
            yield order[taken : taken + size]
            taken += size


class Locked(Buckets):
    """A batch sampler that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(DATA[index] for index in range(1000))


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return DATA[index]


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(DATA, **options)


def naive(loader: DataLoader[Any]) -> int:
    """Read a whole pass and count."""
    return sum(len(x) for x, _ in loader)


class EverySecond(BatchSampler):
    """A share of another batch sampler's batches, that holds no sampler of its own."""

    def __init__(self, batches: BatchSampler) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return -(-len(self.batches) // 2)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(self.batches)[::2])


KNOWN: dict[str, Make] = {
    "share of batches": lambda: loader(
        batch_sampler=EverySecond(BatchSampler(range(205), 30, drop_last=False))
    ),
    "in order": lambda: loader(batch_size=30),
    "shuffled": lambda: loader(batch_size=30, shuffle=True, drop_last=True),
    "subset sampler": lambda: loader(batch_size=30, sampler=SubsetRandomSampler(range(200))),
    "drawn": lambda: loader(
        batch_size=30, sampler=RandomSampler(DATA, replacement=True, num_samples=300)
    ),
    "weighted": lambda: loader(
        batch_size=30, sampler=WeightedRandomSampler([1.0] * 1000, 250), drop_last=True
    ),
    "more than the data": lambda: loader(
        batch_size=30, sampler=RandomSampler(DATA, num_samples=1700)
    ),
    "own sampler": lambda: loader(batch_size=30, sampler=Reversed()),
    "batch sampler": lambda: loader(
        batch_sampler=BatchSampler(SubsetRandomSampler(range(200)), 30, drop_last=False)
    ),
    "batch sampler, last dropped": lambda: loader(
        batch_sampler=BatchSampler(SubsetRandomSampler(range(200)), 30, drop_last=True)
    ),
    "own batch sampler": lambda: loader(batch_sampler=Buckets()),
    "list of batches": lambda: loader(batch_sampler=[[1, 2, 3], [4], [5, 6]]),
    "share, padded": lambda: loader(
        batch_size=30, sampler=DistributedSampler(DATA, num_replicas=3, rank=2)
    ),
    "share, dropped": lambda: loader(
        batch_size=30, sampler=DistributedSampler(DATA, num_replicas=3, rank=0, drop_last=True)
    ),
    "subset": lambda: DataLoader(Subset(DATA, range(77)), batch_size=30),
    "sampler over data without a length": lambda: DataLoader(
        Unsized(), batch_size=30, sampler=range(200)
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_samples_of_a_pass_are_those_that_reading_it_gives(name: str) -> None:
    assert samples_of_pass(KNOWN[name]()) == naive(KNOWN[name]())


@given(
    samples=st.integers(0, 40),
    size=st.integers(1, 12),
    drop_last=st.booleans(),
    most=st.one_of(st.none(), st.integers(0, 50)),
)
def test_any_pass_is_counted_as_its_batches_are(
    samples: int, size: int, drop_last: bool, most: int | None
) -> None:
    batches = BatchSampler(range(samples), size, drop_last)
    twin = sum(len(batch) for batch in list(batches)[:most])
    assert samples_of_pass(DataLoader(DATA, batch_sampler=batches), most=most) == twin
    own = DataLoader(DATA, batch_sampler=list(batches))
    assert samples_of_pass(own, most=most) == twin


@pytest.mark.parametrize(
    "unknown",
    [
        loader(batch_size=30, sampler=Endless()),
        loader(batch_sampler=BatchSampler(Endless(), 30, drop_last=False)),
        loader(batch_size=None),
        loader(batch_sampler=Locked()),
        DataLoader(Stream(), batch_size=30),
        [torch.ones(3)],
        iter(loader(batch_size=30)),
    ],
)
def test_a_pass_of_unknown_length_is_none(unknown: Any) -> None:
    assert samples_of_pass(unknown) is None


def test_the_sampler_of_a_loader_is_the_one_that_gives_the_order() -> None:
    order, inside = SubsetRandomSampler(range(9)), BatchSampler(range(9), 2, drop_last=False)
    assert sampler_of(loader(sampler=order)) is order
    assert sampler_of(loader(batch_sampler=BatchSampler(order, 2, drop_last=False))) is order
    assert sampler_of(loader(sampler=order, batch_size=None)) is order
    for own in (Buckets(), EverySecond(inside)):
        assert sampler_of(loader(batch_sampler=own)) is own


def test_counting_an_own_batch_sampler_moves_no_generator() -> None:
    sampler = Buckets()
    counted, untouched = loader(batch_sampler=sampler), loader(batch_sampler=copy.deepcopy(sampler))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index,union-attr]
    samples_of_pass(counted)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index,union-attr]
    assert before == after
    for (x, _), (same, _) in zip(counted, untouched, strict=True):
        assert torch.equal(x, same)


def test_counting_an_own_batch_sampler_does_not_copy_the_data() -> None:
    class Uncopied(TensorDataset):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("the data were copied")

    class OfData(Buckets):
        def __init__(self, source: Any, whole: Any) -> None:
            super().__init__()
            self.source, self.whole = source, whole

    whole = Uncopied(*data(1000))
    part = Subset(whole, range(900))
    batches = OfData(part, whole)
    assert samples_of_pass(DataLoader(part, batch_sampler=batches)) == sum(range(5, 17))


# What follows the length of an epoch

THREE: dict[str, tuple[Make, int]] = {
    "subset sampler": (
        lambda: loader(batch_size=20, sampler=SubsetRandomSampler(range(200))),
        200,
    ),
    "drawn": (
        lambda: loader(
            batch_size=20, sampler=RandomSampler(DATA, replacement=True, num_samples=300)
        ),
        300,
    ),
    "own batch sampler": (
        lambda: loader(batch_sampler=[list(range(at, at + 20)) for at in range(0, 240, 20)]),
        240,
    ),
}


def control_of(
    source: Any, rule: lb.Rule | None = None, *, batch_size: int = 40, **options: Any
) -> lb.Controller:
    model = small_model()
    batches = lb.BatchLoader(source, batch_size=batch_size, **options)
    return lb.Controller(model, sgd(model), rule or lb.LinearScaling(), batches, base_batch_size=20)


@pytest.mark.parametrize("name", THREE)
def test_a_budget_of_an_epoch_is_one_pass(name: str) -> None:
    make, samples = THREE[name]
    control = control_of(make())
    train(control, epochs=1)
    assert control.samples == samples
    train(more := control_of(make()), epochs=2.5)
    assert samples * 2.5 <= more.samples < samples * 2.5 + 20  # whole micro-batches


@pytest.mark.parametrize("name", THREE)
def test_legw_warms_up_over_passes(name: str) -> None:
    make, samples = THREE[name]
    control = control_of(make(), lb.methods.legw(warmup_epochs=1.0))
    seen = []
    for batch in control.steps(samples=4 * samples):
        for x, y in batch:
            control.backward((control.model(x) - y).square().mean())
        before = control.samples
        seen.append((before, control.step().lr_multiplier))
    full = [before for before, multiplier in seen if multiplier > 2**0.5 - 1e-9]
    assert full[0] == 2 * samples  # at the scale 2 a warm-up of 1 epoch lasts 2


@pytest.mark.parametrize("name", THREE)
def test_a_rule_that_wants_more_gets_one_pass_as_a_batch(name: str) -> None:
    make, samples = THREE[name]
    # a noise scale that asks for a batch without end
    control = control_of(make(), lb.NormTest(eta=1e-6))
    train(control, steps=6)
    assert control.batch_size == samples


@pytest.mark.parametrize("name", THREE)
def test_accordion_counts_its_epochs_in_passes(name: str) -> None:
    make, samples = THREE[name]
    control = control_of(make(), lb.rules.Accordion(growth=2.0, threshold=1e9, epochs=1))
    seen = []
    for batch in control.steps(samples=4 * samples):
        for x, y in batch:
            control.backward((control.model(x) - y).square().mean())
        control.step()
        seen.append((control.samples, control.batch_size))
    grown = [samples_then for samples_then, size in seen if size > 40]
    assert samples <= grown[0] <= 2 * samples + 40


@pytest.mark.parametrize(
    "source",
    [DataLoader(Stream(), batch_size=20), loader(batch_size=20, sampler=Endless())],
    ids=["stream", "sampler without a length"],
)
def test_epochs_of_a_loader_of_unknown_length_need_it_to_be_given(source: Any) -> None:
    with pytest.raises(ValueError, match=r"in one pass is unknown.*dataset_size=60_000"):
        control_of(source).steps(epochs=1)
    with pytest.raises(ValueError, match="dataset_size=60_000"):
        control_of(source, lb.methods.legw())
    control = control_of(source, dataset_size=500)
    train(control, epochs=1)
    assert control.samples == 500


# A run that is resumed


def state_after(control: lb.Controller) -> dict[str, Any]:
    train(control, samples=80)
    return control.state_dict()


def in_passes() -> DataLoader[Any]:
    """An order that can be repeated: a third of the data."""
    return loader(batch_size=20, sampler=DistributedSampler(DATA, num_replicas=3, rank=0))


def test_a_resumed_run_keeps_the_epoch_that_it_was_started_with() -> None:
    old = control_of(in_passes())  # as version 0.1 counted: the data set behind the sampler
    old.decider = replace(old.decider, dataset_size=1000)
    saved = state_after(old)
    resumed = control_of(in_passes())
    with pytest.warns(UserWarning, match=r"1000 samples per epoch, .* has 334.* with 1000"):
        resumed.load_state_dict(saved)
    assert resumed.decider.dataset_size == 1000
    train(resumed, samples=80)
    assert resumed.state_dict() == saved


def test_a_resumed_run_with_the_same_epoch_does_not_warn() -> None:
    resumed = control_of(in_passes())
    resumed.load_state_dict(state_after(control_of(in_passes())))
    assert (resumed.samples, resumed.decider.dataset_size) == (80, 334)


def test_other_data_or_another_given_number_are_refused_as_before() -> None:
    saved = state_after(control_of(in_passes()))
    other = DataLoader(Subset(DATA, range(999)), batch_size=20)
    with pytest.raises(
        lb.errors.CheckpointError,
        match=r"dataset_size=1000, but this .* has dataset_size=999",
    ):
        control_of(other).load_state_dict(saved)
    with pytest.raises(lb.errors.CheckpointError, match="dataset_size=334, but this run has"):
        control_of(in_passes(), dataset_size=50).load_state_dict(saved)
