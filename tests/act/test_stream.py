import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stream_twin import naive_stream

from largebatch.act.stream import SampleStream, seed_of


@given(
    size=st.integers(1, 9),
    seed=st.integers(-3, 3),
    reads=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=8),
)
def test_any_read_equals_the_same_slice_of_the_stream_written_out(size, seed, reads):
    stream = SampleStream(size, seed=seed)
    written = naive_stream(size, seed=seed, epochs=70 // size + 1)
    for position, count in reads:
        found = stream.indices(position, count)
        assert found.dtype == torch.int64
        assert found.tolist() == written[position : position + count]


def test_each_epoch_is_another_permutation_of_all_samples():
    stream = SampleStream(50, seed=1)
    epochs = [stream.indices(50 * e, 50).tolist() for e in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_without_shuffling_every_epoch_is_in_the_order_of_the_data_set():
    assert SampleStream(4, shuffle=False).indices(2, 8).tolist() == [2, 3, 0, 1, 2, 3, 0, 1]


def test_the_seed_decides_the_order():
    first, again, other = (SampleStream(50, seed=s).indices(0, 50).tolist() for s in (1, 1, 2))
    assert first == again != other


def test_the_first_permutations_of_seed_zero_stay_what_they_are():
    assert SampleStream(5, seed=0).indices(0, 10).tolist() == [0, 1, 4, 2, 3, 3, 2, 0, 4, 1]


def test_members_rename_the_samples_of_a_subset():
    members = [7, 3, 9]
    stream = SampleStream(3, seed=5, members=torch.tensor(members))
    assert stream.indices(1, 7).tolist() == naive_stream(3, seed=5, epochs=3, members=members)[1:8]


def test_an_epoch_is_drawn_once_while_it_is_read(monkeypatch):
    drawn = []
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: drawn.append(a) or randperm(*a, **k))
    stream = SampleStream(10)
    for position in range(0, 40, 5):
        stream.indices(position, 5)
        stream.indices(position + 2, 5)
    assert len(drawn) == 5


def test_seeds_of_neighbours_and_of_other_purposes_differ():
    seeds = {seed_of(p, s, n) for p in ("epoch", "sample") for s in range(9) for n in range(9)}
    assert len(seeds) == 2 * 9 * 9
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_indices_go_to_the_device_of_the_data():
    assert SampleStream(4, device=torch.device("meta")).indices(2, 4).device.type == "meta"


@pytest.fixture(autouse=True)
def _global_generator_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)
