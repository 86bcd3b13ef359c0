import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stream_twin import as_lists, bound, naive_chunks, naive_stream, take
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from largebatch.act.loader import BatchLoader
from largebatch.core.errors import LargeBatchError, MicroBatchMissed, RecordError

torch.set_num_threads(1)

histories = st.fixed_dictionaries(
    {
        "size": st.integers(1, 12),
        "seed": st.integers(0, 3),
        "shuffle": st.booleans(),
        "ranks": st.integers(1, 3),
        "most": st.integers(1, 6),
        "least_parts": st.integers(1, 2),
        "alike": st.booleans(),
        "batch_sizes": st.lists(st.integers(3, 25), min_size=1, max_size=6),
    }
)


def loaders_of(history, *, ranks=None):
    ranks = ranks or history["ranks"]
    return [
        bound(
            torch.arange(history["size"]),
            rank=rank,
            ranks=ranks,
            least_parts=history["least_parts"],
            alike=history["alike"],
            batch_size=history["batch_sizes"][0],
            max_micro_batch_size=history["most"],
            seed=history["seed"],
            shuffle=history["shuffle"],
        )
        for rank in range(ranks)
    ]


def step_of_all(loaders, batch_size):
    """The samples of one step in the order of the stream: chunk j came from rank j mod ranks."""
    of_ranks = [as_lists(take(loader, batch_size=batch_size)) for loader in loaders]
    return [chunk for turn in zip(*of_ranks, strict=True) for chunk in turn]


class Squares(Dataset):
    """Map-style: (i, i squared)."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert type(index) is int
        return torch.tensor(index), index**2


@given(histories)
def test_ranks_together_read_the_stream_in_order_cut_as_planned(history):
    samples = sum(history["batch_sizes"])
    epochs = samples // history["size"] + 1
    written = naive_stream(history["size"], seed=history["seed"], epochs=epochs)
    if not history["shuffle"]:
        written = list(range(history["size"])) * epochs
    loaders = loaders_of(history)
    position = 0
    for batch_size in history["batch_sizes"]:
        chunks = step_of_all(loaders, batch_size)
        step = written[position : position + batch_size]
        assert chunks == naive_chunks(step, parts=len(chunks))
        assert len(chunks) >= min(history["least_parts"], batch_size)
        # single samples that ranks cannot share evenly make one chunk of two
        uneven = history["most"] == 1 and batch_size % history["ranks"]
        assert all(1 <= len(chunk) <= history["most"] + bool(uneven) for chunk in chunks)
        position += batch_size
        assert {loader.position for loader in loaders} == {position}


@given(histories)
def test_every_sample_comes_once_an_epoch(history):
    loaders = loaders_of(history)
    read = [i for b in history["batch_sizes"] for chunk in step_of_all(loaders, b) for i in chunk]
    size = history["size"]
    for start in range(0, len(read) - size + 1, size):
        assert sorted(read[start : start + size]) == list(range(size))


@given(histories, st.data())
def test_going_on_from_any_commit_is_going_on_uninterrupted(history, data):
    cut = data.draw(st.integers(0, len(history["batch_sizes"])))
    ranks_after = data.draw(st.integers(1, 3))
    whole, broken = loaders_of(history), loaders_of(history)
    resumed = loaders_of(history, ranks=ranks_after)
    for batch_size in history["batch_sizes"][:cut]:
        step_of_all(whole, batch_size)
        step_of_all(broken, batch_size)
    broken[0].next_step()
    stored = json.loads(json.dumps(broken[0].state_dict()))
    for loader in resumed:
        loader.load_state_dict(stored)
        assert loader.batch_size == whole[0].batch_size
    for batch_size in history["batch_sizes"][cut:]:
        expected = [i for chunk in step_of_all(whole, batch_size) for i in chunk]
        assert [i for chunk in step_of_all(resumed, batch_size) for i in chunk] == expected


@given(histories, st.integers(0, 3))
def test_a_step_that_was_not_committed_is_given_again(history, read):
    (loader,) = loaders_of(history, ranks=1)
    step = loader.next_step()
    first = [micro_batch.tolist() for (micro_batch, _), _ in zip(step, range(read), strict=False)]
    again = as_lists(take(loader))
    assert again[: len(first)] == first
    assert loader.position == history["batch_sizes"][0]


def test_a_batch_of_ten_in_parts_of_three_by_hand():
    loader = bound(torch.arange(12), batch_size=10, max_micro_batch_size=3, shuffle=False)
    step = loader.next_step()
    assert (step.batch_size, step.accumulation) == (10, 4)
    assert [(m.tolist(), size) for m, size in step] == [
        ([0, 1, 2], 3),
        ([3, 4, 5], 3),
        ([6, 7], 2),
        ([8, 9], 2),
    ]


def test_two_parts_are_made_on_one_rank_where_a_variance_is_needed():
    loader = bound(torch.arange(8), batch_size=8, least_parts=2, shuffle=False)
    assert as_lists(take(loader)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(("ranks", "expected"), [(1, [7] * 2), (2, [4, 3, 4, 3])])
def test_by_default_a_micro_batch_is_a_ranks_share_of_the_first_batch(ranks, expected):
    loaders = [bound(torch.arange(9), rank=r, ranks=ranks, batch_size=7) for r in range(ranks)]
    assert all(len(take(loader)) == 1 for loader in loaders)
    sizes = [len(chunk) for chunk in step_of_all(loaders, 14)]
    assert sorted(sizes, reverse=True) == sorted(expected, reverse=True)


def test_with_alike_two_ranks_get_the_default_micro_batches_of_one_rank():
    def chunks(ranks):
        source = torch.arange(9)
        options = {"ranks": ranks, "least_parts": 2, "alike": True, "batch_size": 7}
        loaders = [bound(source, rank=rank, **options) for rank in range(ranks)]
        return [step_of_all(loaders, batch_size) for batch_size in (7, 14, 15, 20)]

    assert chunks(1) == chunks(2)
    assert [[len(c) for c in step] for step in chunks(1)] == [
        [4, 3],
        [4, 4, 3, 3],
        [4, 4, 4, 3],
        [3, 3, 3, 3, 2, 2, 2, 2],
    ]


@pytest.mark.parametrize(("limit", "expected"), [(None, 8), (100, 8), (8, 8), (5, 5), (1, 3)])
def test_the_last_step_keeps_to_the_limit_with_one_sample_a_rank(limit, expected):
    loaders = [
        bound(torch.arange(50), rank=rank, ranks=3, batch_size=8, shuffle=False)
        for rank in range(3)
    ]
    chunks = [take(loader, limit=limit) for loader in loaders]
    assert sorted(i for micros in chunks for m in micros for i in m.tolist()) == [*range(expected)]
    assert loaders[0].batch_size == 8


def test_a_batch_may_hold_several_epochs():
    (only,) = take(bound(torch.arange(3), batch_size=8, shuffle=False))
    assert only.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_step_is_read_when_asked_for():
    read = []

    class Watched(Squares):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    loader = bound(Watched(9), batch_size=6, max_micro_batch_size=2, shuffle=False)
    step = loader.next_step()
    assert read == []
    next(iter(step))
    assert read == [0, 1]


def test_every_kind_of_data_set_gives_the_same_samples():
    x = torch.arange(7.0)
    numbers, squares = torch.arange(7), torch.arange(7) ** 2
    sources = {
        "tensors": (numbers, squares),
        "tensor data set": TensorDataset(numbers, squares),
        "items": Squares(7),
        "list": [(torch.tensor(i), i**2) for i in range(7)],
        "subset of tensors": Subset(TensorDataset(x, numbers, squares), range(7)),
    }
    options = {"batch_size": 5, "max_micro_batch_size": 3, "seed": 4}
    found = {}
    for name, source in sources.items():
        loader = bound(source, **options)
        micros = take(loader) + take(loader)
        found[name] = [[part.tolist() for part in micro[-2:]] for micro in micros]
        assert loader.dataset_size == 7
    assert all(micros == found["tensors"] for micros in found.values())
    written = naive_stream(7, seed=4, epochs=2)
    assert [i for numbers, _ in found["items"] for i in numbers] == written[:10]


def test_a_subset_of_a_subset_is_read_by_its_own_indices():
    inner = Subset(TensorDataset(torch.arange(10) * 10), [9, 8, 7, 6, 5])
    loader = bound(Subset(inner, [0, 2, 4]), batch_size=3, shuffle=False)
    assert [m.tolist() for (m,) in take(loader)] == [[90, 70, 50]]
    assert loader.dataset_size == 3


def test_collate_is_used_for_tensors_too():
    sources = [torch.arange(4), (torch.arange(4),), TensorDataset(torch.arange(4))]
    loaders = [bound(s, batch_size=2, shuffle=False, collate=len) for s in sources]
    assert [take(loader) for loader in loaders] == [[2], [2], [2]]


def test_the_batch_size_can_be_changed_before_and_after_binding():
    loader = BatchLoader(torch.arange(9), batch_size=4)
    loader.resize(2)
    loader.bind(rank=0, ranks=1, least_parts=1)
    assert [len(m) for m in take(loader)] == [2]
    loader.resize(3)
    assert loader.batch_size == 3
    assert not loader.exhausted


def test_a_commit_of_other_samples_than_planned_is_refused_and_moves_nothing():
    loader = bound(torch.arange(9), batch_size=4)
    loader.next_step()
    with pytest.raises(MicroBatchMissed, match="planned with 4 samples over all ranks, but"):
        loader.commit(3)
    assert loader.position == 0


def test_the_position_moves_by_the_samples_of_the_step_and_not_by_the_requested_batch():
    loader = bound(torch.arange(9), batch_size=4, shuffle=False)
    step = loader.next_step()
    loader.resize(2)
    loader.commit(step.batch_size)
    assert loader.position == 4
    loader.next_step(limit=1)
    loader.commit(1)
    assert loader.position == 5


def test_a_step_is_committed_once():
    loader = bound(torch.arange(9), batch_size=4)
    take(loader)
    with pytest.raises(LargeBatchError, match="no step was requested since the last commit"):
        loader.commit(4)


def test_a_step_before_binding_is_refused():
    with pytest.raises(LargeBatchError, match=r"Pass it to lb\.Controller"):
        BatchLoader(torch.arange(9), batch_size=4).next_step()


def test_a_loader_in_use_is_not_bound_again():
    loader = bound(torch.arange(9), batch_size=4)
    loader.bind(rank=0, ranks=2, least_parts=1)
    assert [len(m) for m in take(loader)] == [2]
    with pytest.raises(ValueError, match=r"Another lb\.Controller already uses"):
        loader.bind(rank=0, ranks=1, least_parts=1)


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(4))


class Unsized(Dataset):
    def __getitem__(self, index):
        return index


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            torch.arange(9),
            {"batch_size": 0},
            "batch_size=0 .* a whole number of at least 1",
        ),
        (torch.arange(9), {"max_micro_batch_size": 0}, "must be a number of samples of at least 1"),
        (torch.arange(9), {"num_workers": -1}, "num_workers=-1 was given"),
        (torch.arange(9), {"num_workers": 2}, "Remove num_workers .* without workers"),
        (torch.arange(9), {"size_of": len}, "Remove size_of"),
        (Squares(3), {"worker_options": {"timeout": 1}}, "Pass num_workers=2"),
        (
            Squares(3),
            {"num_workers": 1, "worker_options": {"in_order": False}},
            "unknown keys .*'in_order'",
        ),
        (torch.arange(0), {}, "The Tensor is empty"),
        (Squares(0), {}, "The Squares is empty"),
        (Subset(Squares(3), []), {}, "The Subset is empty"),
        (torch.tensor(3), {}, "same first dimension"),
        ((torch.arange(3), torch.arange(4)), {}, r"\(3,\), \(4,\).*same first dimension"),
        ((), {}, "tuple given to BatchLoader is empty"),
        ((torch.arange(3), [1, 2, 3]), {}, "from_numpy"),
        ((torch.arange(3), torch.arange(3).to("meta")), {}, "on one device"),
        ({"x": torch.arange(3)}, {}, "dict was given, but BatchLoader needs a data set"),
        (Numbers(), {}, r"BatchLoader\(DataLoader\(dataset, batch_size=64\)"),
        (Unsized(), {}, "BatchLoader cannot read a Unsized"),
        (7, {}, "BatchLoader cannot read a int"),
        (DataLoader(Squares(3)), {"max_micro_batch_size": 4}, "Remove max_micro_batch_size"),
        (DataLoader(Squares(3)), {"collate": len, "num_workers": 1}, "collate and num_workers"),
    ],
)
def test_a_loader_refuses_sizes_that_it_cannot_serve_with_a_remedy(source, options, message):
    with pytest.raises(ValueError, match=message):
        BatchLoader(source, **{"batch_size": 4, **options})


def test_fewer_samples_than_ranks_are_refused_everywhere():
    with pytest.raises(ValueError, match="2 samples cannot be shared by 3 ranks"):
        bound(torch.arange(9), batch_size=2, ranks=3)
    wished = BatchLoader(torch.arange(9), batch_size=4)
    wished.resize(2)
    with pytest.raises(ValueError, match="2 samples cannot be shared by 3 ranks"):
        wished.bind(rank=0, ranks=3, least_parts=1)
    loader = bound(torch.arange(9), batch_size=3, ranks=3)
    with pytest.raises(ValueError, match="2 samples cannot be shared by 3 ranks"):
        loader.resize(2)
    small = BatchLoader(torch.arange(9), batch_size=1).state_dict()
    with pytest.raises(ValueError, match="1 samples cannot be shared by 3 ranks"):
        loader.load_state_dict(small)
    with pytest.raises(ValueError, match="limit=0 was given"):
        loader.next_step(0)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (9, {"seed": 1}, "saved with seed=0, but this BatchLoader has seed=1"),
        (9, {"shuffle": False}, "saved with shuffle=True"),
        (8, {}, "with dataset_size=9, but this BatchLoader has dataset_size=8"),
    ],
)
def test_the_state_of_another_stream_is_refused(size, options, message):
    state = BatchLoader(torch.arange(9), batch_size=4).state_dict()
    with pytest.raises(ValueError, match=message):
        BatchLoader(torch.arange(size), batch_size=4, **options).load_state_dict(state)


def test_a_state_of_another_version_or_with_other_fields_is_refused():
    loader = BatchLoader(torch.arange(9), batch_size=4)
    with pytest.raises(ValueError, match="saved with version=3"):
        loader.load_state_dict({**loader.state_dict(), "version": 3})
    with pytest.raises(RecordError, match=r"missing fields \['version'\]"):
        loader.load_state_dict({k: v for k, v in loader.state_dict().items() if k != "version"})


def test_reading_leaves_the_global_generators_alone():
    before = torch.get_rng_state()
    for source in (torch.arange(9), Squares(9)):
        take(bound(source, batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_from_before_a_state_was_loaded_is_not_committed_after_it():
    loader = bound(torch.arange(10), batch_size=4)
    state = loader.state_dict()
    loader.next_step()
    loader.load_state_dict(state)
    with pytest.raises(LargeBatchError, match="no step was requested since the last commit"):
        loader.commit(4)
    assert loader.position == 0
