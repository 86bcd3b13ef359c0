import random

import numpy as np
import pytest
import torch
from stream_twin import bound, naive_stream, take
from torch.utils.data import Dataset

from largebatch.measure.random_state import keep_random_state, seed_generators

torch.set_num_threads(1)


class Augmented(Dataset):
    """Sample i with a draw from each of the global generators."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index, random.random(), np.random.normal(), torch.rand(()).item()


class ManyAugmented(Augmented):
    def __init__(self):
        self.calls = []

    def __getitem__(self, index):
        raise AssertionError("samples are read many at a time")

    def __getitems__(self, indices):
        self.calls.append(indices)
        return [(index, torch.rand(()).item()) for index in indices]


def samples_of(source, *, ranks=1, most=4, steps=3, **options):
    """All samples of some steps in the order of the stream, each a tuple of numbers."""
    loaders = [
        bound(
            source,
            rank=rank,
            ranks=ranks,
            batch_size=6,
            max_micro_batch_size=most,
            seed=3,
            **{"collate": list, **options},
        )
        for rank in range(ranks)
    ]
    read = []
    for _ in range(steps):
        of_ranks = [take(loader) for loader in loaders]
        read += [sample for turn in zip(*of_ranks, strict=True) for m in turn for sample in m]
    return read


def generators():
    return random.getstate(), np.random.get_state()[1:], torch.get_rng_state()


def assert_same_generators(before):
    python, numpy, cpu = generators()
    assert python == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(numpy, before[1], strict=True))
    assert torch.equal(cpu, before[2])


@pytest.mark.parametrize(("ranks", "most"), [(1, 1), (1, 6), (2, 2), (3, 2)])
def test_augmentation_belongs_to_the_sample_whatever_the_cut(ranks, most):
    reference = samples_of(Augmented())
    assert samples_of(Augmented(), ranks=ranks, most=most) == reference
    assert [sample[0] for sample in reference] == naive_stream(7, seed=3, epochs=3)[:18]


def test_augmentation_differs_from_sample_to_sample_and_from_epoch_to_epoch():
    read = samples_of(Augmented())
    assert all(len({sample[of] for sample in read}) == 18 for of in (1, 2, 3))


def test_augmentation_is_the_same_after_a_resume():
    options = {"batch_size": 5, "seed": 1, "collate": list}
    whole, resumed = bound(Augmented(), **options), bound(Augmented(), **options)
    take(whole)
    resumed.load_state_dict(whole.state_dict())
    torch.manual_seed(99)
    assert take(resumed) == take(whole)


def test_the_callers_generators_come_out_as_they_went_in():
    np.random.normal()  # leaves the second number of a pair behind
    before = generators()
    samples_of(Augmented())
    assert_same_generators(before)


def test_the_callers_generators_survive_an_error_in_the_data_set():
    class Broken(Augmented):
        def __getitem__(self, index):
            random.random()
            raise KeyError("no such image")

    before = generators()
    with pytest.raises(KeyError, match="no such image"):
        samples_of(Broken())
    assert_same_generators(before)


def test_all_three_generators_follow_the_seed():
    def draw(seed):
        seed_generators(seed)
        return random.random(), np.random.rand(), torch.rand(()).item()

    with keep_random_state():
        assert draw(2**63 + 1) == draw(2**63 + 1)
        assert all(a != b for a, b in zip(draw(1), draw(2), strict=True))


def test_without_seeding_samples_draw_from_the_callers_generators():
    torch.manual_seed(0)
    first = samples_of(Augmented(), seed_samples=False)
    assert samples_of(Augmented(), seed_samples=False) != first
    torch.manual_seed(0)
    again = samples_of(Augmented(), seed_samples=False)
    assert [sample[3] for sample in again] == [sample[3] for sample in first]


def test_many_samples_are_read_in_one_call_a_micro_batch():
    source = ManyAugmented()
    read = samples_of(source, steps=1)
    written = naive_stream(7, seed=3, epochs=1)
    assert source.calls == [written[:3], written[3:6]]
    assert [sample[0] for sample in read] == written[:6]


def test_a_call_for_many_is_seeded_by_its_first_position():
    first = samples_of(ManyAugmented())
    torch.manual_seed(5)
    assert samples_of(ManyAugmented()) == first
    assert len({draw for _, draw in first}) == 18


def test_default_collate_stacks_samples():
    numbers, *draws = take(bound(Augmented(), batch_size=4, shuffle=False))[0]
    assert numbers.tolist() == [0, 1, 2, 3]
    assert [draw.shape for draw in draws] == [(4,)] * 3
