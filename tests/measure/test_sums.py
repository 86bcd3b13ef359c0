"""Sums of device scalars: folding changes nothing, NaN is never lost, the layout is fixed."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from largebatch.measure import sums as module
from largebatch.measure.ranks import Ranks
from largebatch.measure.sums import LIMIT, Sums, rows_by_name


def fresh(*names: str) -> Sums:
    sums = Sums(Ranks(), device=torch.device("cpu"))
    sums.open(rows_by_name(names))
    return sums


def test_weighted_sums_by_hand():
    sums = fresh("a", "b", "never")
    sums.add("a", torch.tensor(3.0), torch.tensor(1.0), coefficient=2.0)
    sums.add("b", torch.tensor(5.0, dtype=torch.float64))
    sums.add("a", torch.tensor(0.5, dtype=torch.bfloat16), coefficient=-1.0)
    sums.put({"weight": 4.0})
    assert sums.reduce() == {"a": 7.5, "b": 5.0, "never": 0.0, "weight": 4.0}


def test_folding_equals_no_folding(monkeypatch):
    scalars = torch.randn(5 * LIMIT).unbind()
    found = []
    for limit in (LIMIT, 10 * LIMIT, 3):
        monkeypatch.setattr(module, "LIMIT", limit)
        sums = fresh("a", "b")
        for at in range(0, len(scalars), 7):
            sums.add("ab"[at % 2], *scalars[at : at + 7], coefficient=1.0 + at)
        found.append(sums.reduce())
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-12)


def test_memory_does_not_grow_with_the_scalars():
    sums = fresh("a")
    for _ in range(20):
        sums.add("a", *torch.ones(LIMIT // 2).unbind())
        assert len(sums._scalars) <= LIMIT
    assert sums.reduce() == {"a": 10.0 * LIMIT}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("coefficient", [1.0, 0.0])
def test_one_sum_that_is_not_finite_is_seen_even_where_it_counts_nothing(bad, coefficient):
    sums = fresh("a", "b")
    sums.add("a", torch.tensor(1.0))
    sums.add("b", torch.tensor(bad), coefficient=coefficient)
    assert not all(map(math.isfinite, sums.reduce().values()))


def test_small_differences_of_large_sums_survive():
    sums = fresh("large", "small")
    sums.add("large", torch.tensor(1e8), coefficient=1.0)
    sums.add("large", *torch.full((100,), 1e-3).unbind())
    assert sums.reduce()["large"] - 1e8 == pytest.approx(0.1, rel=1e-6)


def test_dropped_names_start_again_also_after_folding():
    sums = fresh("a", "b")
    sums.add("a", *torch.ones(LIMIT + 1).unbind())
    sums.add("b", torch.tensor(2.0))
    sums.drop({"a"})
    assert sums.reduce() == {"a": 0.0, "b": 2.0}
    sums.add("a", torch.tensor(4.0))
    assert sums.reduce() == {"a": 4.0, "b": 2.0}


def test_the_layout_is_that_of_open_whatever_was_added():
    sums = fresh("a", "b", "c")
    assert list(sums.reduce()) == ["a", "b", "c"]
    sums.add("c", torch.tensor(1.0))
    assert list(sums.reduce()) == ["a", "b", "c"]
    with pytest.raises(KeyError):
        sums.add("d", torch.tensor(1.0))
    sums.open(rows_by_name(["d"]))
    assert sums.reduce() == {"d": 0.0}


def test_new_coefficients_are_not_taken_from_the_step_before():
    sums = fresh("a")
    for coefficient in (1.0, 3.0, 1.0):
        sums.open(rows_by_name(["a"]))
        sums.add("a", torch.tensor(2.0), coefficient=coefficient)
        assert sums.reduce() == {"a": 2.0 * coefficient}


def test_adding_never_waits_for_the_device():
    class NoSync(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func)
            return func(*args, **(kwargs or {}))

    sums = fresh("a")
    with NoSync():
        for _ in range(3):
            sums.add("a", *torch.ones(LIMIT).unbind(), coefficient=0.5)
    assert sums.reduce() == {"a": 1.5 * LIMIT}
