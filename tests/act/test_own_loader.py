import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stream_twin import as_lists, bound, take
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from largebatch.act.leading_size import leading_size
from largebatch.act.loader import BatchLoader

torch.set_num_threads(1)


def micro_batches(count, *, size=2, last=None):
    """Ready micro-batches of consecutive numbers; the last one may have another size."""
    sizes = [size] * (count - 1) + [last or size]
    return list(torch.arange(sum(sizes)).split(sizes))


class Again:
    """An iterable that can be read again, and remembers how often it was."""

    def __init__(self, batches):
        self.batches = batches
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def test_an_own_loaders_batches_are_the_micro_batches_repeated_for_ever():
    source = Again(micro_batches(3))
    loader = bound(source, batch_size=4)
    assert [as_lists(take(loader)) for _ in range(3)] == [
        [[0, 1], [2, 3]],
        [[4, 5], [0, 1]],
        [[2, 3], [4, 5]],
    ]
    assert source.passes == 2
    assert not loader.exhausted
    assert loader.position == 12
    assert loader.dataset_size is None


@given(
    count=st.integers(1, 6),
    size=st.integers(1, 4),
    ranks=st.integers(1, 3),
    wishes=st.lists(st.integers(12, 40), min_size=1, max_size=5),
)
def test_a_step_takes_the_fewest_micro_batches_that_reach_its_share(count, size, ranks, wishes):
    batches = micro_batches(count, size=size)
    loader = bound(Again(batches), batch_size=wishes[0], ranks=ranks)
    taken = 0
    for wish in wishes:
        micros = take(loader, batch_size=wish)
        assert (len(micros) - 1) * size * ranks < wish <= len(micros) * size * ranks
        expected = [batches[(taken + i) % count] for i in range(len(micros))]
        assert as_lists(micros) == as_lists(expected)
        taken += len(micros)


def test_the_short_micro_batch_that_ends_a_pass_does_not_lengthen_the_step():
    loader = bound(Again(micro_batches(3, size=8, last=1)), batch_size=16)
    assert [[len(m) for m in take(loader)] for _ in range(3)] == [[8, 8], [1, 8], [8, 1]]


def test_micro_batches_are_read_one_ahead_at_most():
    read = []

    class Watched:
        def __iter__(self):
            for number in range(9):
                read.append(number)
                yield torch.tensor([number])

    loader = bound(Watched(), batch_size=4)
    step = loader.next_step()
    assert read == [0]
    next(iter(step))
    assert read == [0]
    assert [m.item() for m, _ in step] == [1, 2, 3]
    assert read == [0, 1, 2, 3]


@pytest.mark.parametrize(("count", "expected"), [(4, [2, 2]), (5, [2, 2, 1]), (1, [1])])
def test_an_iterator_ends_with_a_step_that_may_be_short(count, expected):
    loader = bound(iter(micro_batches(count)), batch_size=4)
    steps = []
    while not loader.exhausted:
        steps.append(take(loader))
    assert [len(micros) for micros in steps] == expected
    assert [i for micros in steps for m in micros for i in m.tolist()] == [*range(2 * count)]
    assert loader.next_step() is None


def test_the_size_is_given_with_each_micro_batch():
    loader = bound(Again(micro_batches(2, size=3, last=2)), batch_size=6)
    assert [size for _, size in loader.next_step()] == [3, 2]
    texts = Again([["a", "b"], ["c"]])
    assert [s for _, s in bound(texts, batch_size=4, size_of=len).next_step()] == [2, 1]


def test_a_batch_size_or_limit_below_one_micro_batch_still_takes_a_whole_micro_batch():
    loader = bound(Again(micro_batches(3)), batch_size=4)
    assert [len(m) for m in take(loader, batch_size=1)] == [2]
    assert [len(m) for m in take(loader, batch_size=4, limit=2)] == [2]


def test_a_smaller_batch_size_still_takes_two_micro_batches_if_a_variance_is_needed():
    loader = bound(Again(micro_batches(8)), batch_size=4, least_parts=2)
    assert [len(m) for m in take(loader, batch_size=1)] == [2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, r"BatchLoader\(loader, batch_size=2\).*DataLoader\(dataset, .*=1\)"),
        ({"batch_size": 3, "ranks": 2}, r"BatchLoader\(loader, batch_size=4\)"),
        ({"batch_size": 2, "least_parts": 2}, "at least 2 micro-batches per rank"),
    ],
)
def test_micro_batches_too_large_for_the_first_batch_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bound(Again(micro_batches(3)), **options)


@pytest.mark.parametrize("source", [Again([]), iter([]), DataLoader(TensorDataset(torch.ones(0)))])
def test_an_own_loader_without_micro_batches_is_refused(source):
    with pytest.raises(ValueError, match="gave no micro-batch in pass 0"):
        bound(source, batch_size=4)


def test_an_own_loader_that_is_empty_in_its_second_pass_is_refused_with_a_remedy():
    class Once:
        def __init__(self):
            self.iterator = iter(micro_batches(2))

        def __iter__(self):
            return iter([*self.iterator])

    loader = bound(Once(), batch_size=4)
    take(loader)
    with pytest.raises(ValueError, match=r"in pass 1.*BatchLoader\(iter\(loader\)"):
        loader.next_step()


class Pairs(IterableDataset):
    def __iter__(self):
        return iter(range(6))


class Unsized(Dataset):
    def __getitem__(self, index):
        return index


def test_the_samples_of_a_data_loaders_pass_are_known_from_its_sampler():
    sized = DataLoader(TensorDataset(torch.arange(6)), batch_size=2)
    assert BatchLoader(sized, batch_size=4).dataset_size == 6
    assert BatchLoader(DataLoader(Pairs(), batch_size=2), batch_size=4).dataset_size is None
    unsized = DataLoader(Unsized(), batch_size=2, sampler=[0, 1, 2])
    assert BatchLoader(unsized, batch_size=4).dataset_size == 3


def test_the_samples_of_a_pass_may_be_given_and_are_then_not_counted():
    sized = DataLoader(TensorDataset(torch.arange(6)), batch_size=2)
    for source in (sized, DataLoader(Pairs(), batch_size=2), Again(micro_batches(3))):
        loader = BatchLoader(source, batch_size=4, dataset_size=50)
        assert loader.dataset_size == 50
        assert not loader.counts_passes


@pytest.mark.parametrize("wrong", [0, -3, 2.5, "6"])
def test_a_given_number_of_samples_must_be_one(wrong):
    with pytest.raises(ValueError, match=r"the samples that the loaders .* in one pass.*60_000"):
        BatchLoader(Again(micro_batches(3)), batch_size=4, dataset_size=wrong)


def test_a_data_set_counts_its_samples_itself():
    with pytest.raises(ValueError, match=r"Remove dataset_size .* counted by its len"):
        BatchLoader(torch.arange(6), batch_size=4, dataset_size=6)


def test_a_distributed_sampler_learns_of_each_pass():
    data = TensorDataset(torch.arange(8))

    def loader_of(rank):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, seed=3)
        return DataLoader(data, batch_size=2, sampler=sampler)

    read = []
    for rank in range(2):
        loader = bound(loader_of(rank), rank=rank, ranks=2, batch_size=8)
        read.append([i for _ in range(3) for (m,) in take(loader) for i in m.tolist()])
    passes = [read[0][at : at + 4] + read[1][at : at + 4] for at in (0, 4, 8)]
    assert all(sorted(samples) == [*range(8)] for samples in passes)
    assert len({tuple(samples) for samples in passes}) == 3


def test_a_distributed_sampler_within_a_batch_sampler_learns_of_each_pass():
    data = TensorDataset(torch.arange(8))

    def loader_of(*, within):
        sampler = DistributedSampler(data, num_replicas=2, rank=1, seed=3)
        if within:
            return DataLoader(data, batch_sampler=BatchSampler(sampler, 2, drop_last=False))
        return DataLoader(data, batch_size=2, sampler=sampler)

    read = []
    for within in (False, True):
        loader = bound(loader_of(within=within), rank=1, ranks=2, batch_size=8)
        read.append([i for _ in range(3) for (m,) in take(loader) for i in m.tolist()])
    assert read[0] == read[1]
    assert len({tuple(read[1][at : at + 4]) for at in (0, 4, 8)}) > 1


def deterministic_loader():
    data = TensorDataset(torch.arange(10))
    sampler = DistributedSampler(data, num_replicas=1, rank=0)
    return DataLoader(data, batch_size=2, sampler=sampler)


@pytest.mark.parametrize("bind_first", [False, True])
@pytest.mark.parametrize("make", [deterministic_loader, lambda: iter(micro_batches(20))])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_resumed_run_skips_what_was_taken(make, cut, bind_first):
    whole = bound(make(), batch_size=6)
    for _ in range(cut):
        take(whole)
    stored = json.loads(json.dumps(whole.state_dict()))
    resumed = BatchLoader(make(), batch_size=6)
    if not bind_first:
        resumed.load_state_dict(stored)
    resumed.bind(rank=0, ranks=1, least_parts=1)
    if bind_first:
        resumed.load_state_dict(stored)
    assert resumed.position == whole.position == 6 * cut
    for _ in range(3):
        expected, found = take(whole), take(resumed)
        assert str(found) == str(expected)
    assert resumed.state_dict() == whole.state_dict()


def test_a_step_that_was_not_committed_is_redone_after_a_resume():
    broken = bound(deterministic_loader(), batch_size=4)
    take(broken)
    lost = list(broken.next_step())
    resumed = BatchLoader(deterministic_loader(), batch_size=4)
    resumed.load_state_dict(broken.state_dict())
    resumed.bind(rank=0, ranks=1, least_parts=1)
    assert str(list(resumed.next_step())) == str(lost)


def test_an_iterator_resumed_at_its_end_is_exhausted():
    whole = bound(iter(micro_batches(2)), batch_size=4)
    take(whole)
    resumed = BatchLoader(iter(micro_batches(2)), batch_size=4)
    resumed.load_state_dict(whole.state_dict())
    resumed.bind(rank=0, ranks=1, least_parts=1)
    assert resumed.exhausted
    assert resumed.next_step() is None


def test_orders_that_cannot_be_repeated_are_refused_on_resume():
    shuffled = DataLoader(TensorDataset(torch.arange(10)), batch_size=2, shuffle=True)
    loader = bound(shuffled, batch_size=4)
    start = loader.state_dict()
    take(loader)
    with pytest.raises(ValueError, match=r"RandomSampler cannot be repeated.*seed=0"):
        BatchLoader(shuffled, batch_size=4).load_state_dict(loader.state_dict())
    BatchLoader(shuffled, batch_size=4).load_state_dict(start)
    data = TensorDataset(torch.arange(10))
    batches = BatchSampler(RandomSampler(data), 2, drop_last=False)
    shuffled = DataLoader(data, batch_sampler=batches)
    loader = bound(shuffled, batch_size=4)
    take(loader)
    with pytest.raises(ValueError, match=r"RandomSampler cannot be repeated.*seed=0"):
        BatchLoader(shuffled, batch_size=4).load_state_dict(loader.state_dict())


def test_an_iterator_cannot_go_back():
    loader = bound(iter(micro_batches(6)), batch_size=4)
    start = loader.state_dict()
    take(loader)
    with pytest.raises(ValueError, match="cannot return to 0"):
        loader.load_state_dict(start)


def test_a_shorter_loader_than_the_runs_is_refused_on_resume():
    loader = bound(Again(micro_batches(6)), batch_size=10)
    take(loader)
    other = bound(Again(micro_batches(3)), batch_size=4)
    with pytest.raises(ValueError, match="after 5 micro-batches of a pass"):
        other.load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    ("micro_batch", "size"),
    [
        (torch.ones(3, 2), 3),
        ((torch.ones(4), torch.ones(5)), 4),
        ({"ids": ["a"], "x": [torch.ones(2, 7)]}, 2),
    ],
)
def test_samples_are_counted_by_the_first_tensor(micro_batch, size):
    assert leading_size(micro_batch) == size


@pytest.mark.parametrize("micro_batch", [["a", "b"], torch.tensor(3.0), {}, 7])
def test_an_own_loaders_batch_that_cannot_be_counted_is_refused_with_the_line_to_write(micro_batch):
    with pytest.raises(ValueError, match="size_of=lambda micro_batch"):
        leading_size(micro_batch)


def test_an_empty_micro_batch_is_refused():
    with pytest.raises(ValueError, match="size_of returned 0"):
        bound(Again([torch.ones(0)]), batch_size=4)


def test_a_loader_that_cannot_go_where_a_state_says_stays_where_it_was():
    whole = bound(Again(micro_batches(5)), batch_size=6)
    shorter = bound(Again(micro_batches(2)), batch_size=2)
    take(whole)
    take(shorter)
    before = shorter.state_dict()
    with pytest.raises(ValueError, match="gives fewer"):
        shorter.load_state_dict(whole.state_dict())
    assert shorter.state_dict() == before
    assert as_lists(take(shorter)) == [[2, 3]]


def test_a_run_is_resumed_where_the_next_micro_batch_is_larger_than_the_batch():
    source = Again(list(torch.arange(6).split([2, 4])))
    loader = bound(source, batch_size=2)
    take(loader)
    resumed = BatchLoader(source, batch_size=2)
    resumed.load_state_dict(loader.state_dict())
    resumed.bind(rank=0, ranks=1, least_parts=1)
    assert as_lists(take(resumed)) == as_lists(take(loader)) == [[2, 3, 4, 5]]
