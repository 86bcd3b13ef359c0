from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from largebatch.workbench.workloads import DataMissing, evaluate, load
from largebatch.workbench.workloads.digits import load_digits, occurrence


@given(st.lists(st.integers(0, 4), max_size=40))
def test_occurrence_counts_equal_labels_before_each(labels: list[int]) -> None:
    counted = occurrence(torch.tensor(labels, dtype=torch.long)).tolist()
    assert counted == [labels[:i].count(label) for i, label in enumerate(labels)]


def test_the_splits_are_disjoint_and_together_the_whole_set() -> None:
    from sklearn import datasets

    data = load_digits()
    sizes = [len(split[0]) for split in (data.train, data.validation, data.test)]
    assert sizes == [1071, 362, 364]
    rows = [tuple(row) for s in (data.train, data.validation, data.test) for row in s[0].tolist()]
    whole = [tuple(row) for row in (datasets.load_digits().data / 8 - 1).tolist()]
    assert sorted(rows) == sorted(whole)


def test_the_splits_are_the_same_every_time() -> None:
    first, second = load_digits(), load_digits()
    for name in ("train", "validation", "test"):
        for a, b in zip(getattr(first, name), getattr(second, name), strict=True):
            assert torch.equal(a, b)


def test_every_class_is_split_evenly() -> None:
    data = load_digits()
    for split, share in ((data.train, 0.6), (data.validation, 0.2), (data.test, 0.2)):
        counts = torch.bincount(split[1], minlength=10) / share
        assert (
            counts - torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
        ).abs().max() <= 5


def test_pixels_are_between_minus_one_and_one() -> None:
    x, y = load_digits().train
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert y.dtype == torch.int64


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    workload = load("digits")  # naming it reads no data
    with pytest.raises(DataMissing, match=r'pip install "largebatch\[data\]"'):
        workload.data()


def test_a_short_run_at_the_base_batch_learns_the_digits() -> None:
    workload = load("digits")
    data = workload.data()
    model, optimizer = workload.fresh(seed=0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(300):
        chosen = torch.randint(len(data.train[0]), (workload.base_batch_size,), generator=draw)
        optimizer.zero_grad()
        workload.loss(model, tuple(tensor[chosen] for tensor in data.train)).backward()
        optimizer.step()
    assert evaluate(model, workload, data.validation)["accuracy"] > 0.88
