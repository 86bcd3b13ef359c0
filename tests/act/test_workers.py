import random

import numpy as np
import pytest
import torch
from stream_twin import bound, take
from torch.utils.data import Dataset

torch.set_num_threads(1)


class Augmented(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return index, random.random(), np.random.normal(), torch.rand(()).item()


class BrokenAtFive(Augmented):
    def __getitem__(self, index):
        if index == 5:
            raise KeyError("no such image")
        return index


HISTORY = ((6, None), (6, None), (12, None), (7, None), (5, None), (5, None), (5, 2))
"""Growth by whole chunks, another chunk size, back again, and a short last step."""


def steps_of(*, num_workers):
    options = {"worker_options": {"prefetch_factor": 3}} if num_workers else {}
    loader = bound(
        Augmented(),
        batch_size=6,
        max_micro_batch_size=3,
        seed=2,
        collate=list,
        num_workers=num_workers,
        **options,
    )
    return [take(loader, batch_size=size, limit=limit) for size, limit in HISTORY]


def test_workers_read_the_same_as_this_process_while_sizes_change():
    before = torch.get_rng_state()
    assert steps_of(num_workers=2) == steps_of(num_workers=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_left_half_way_is_read_again_and_a_loaded_state_is_followed():
    options = {"batch_size": 4, "max_micro_batch_size": 2, "collate": list, "seed": 1}
    plain, working = bound(Augmented(), **options), bound(Augmented(), num_workers=1, **options)
    next(iter(working.next_step()))
    assert take(working) == take(plain)
    start = bound(Augmented(), **options).state_dict()
    plain.load_state_dict(start)
    working.load_state_dict(start)
    assert take(working) == take(plain)


def test_an_error_in_a_worker_arrives_at_its_own_micro_batch():
    loader = bound(BrokenAtFive(), batch_size=2, shuffle=False, collate=list, num_workers=1)
    assert take(loader) == [[0, 1]]
    assert take(loader) == [[2, 3]]
    with pytest.raises(KeyError, match="no such image"):
        take(loader)
