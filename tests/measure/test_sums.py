"""Sums of device scalars: they equal a naive twin, NaN is never lost, the layout is fixed, and the
copies between host and device are as few as promised."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from accelerator_sums import as_on_accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from largebatch.measure.ranks import Ranks
from largebatch.measure.sums import LIMIT, Sums, rows_by_name


class TwoRanks(Ranks):
    """Two ranks that hold the same; counts the collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 2
        self.collectives = 0

    def sum_(self, values: Tensor) -> Tensor:
        self.collectives += 1
        return values.mul_(2.0)


Make = Callable[[Ranks], Sums]


def on_cpu(ranks: Ranks) -> Sums:
    return Sums(ranks, device=torch.device("cpu"))


def without_float64(ranks: Ranks) -> Sums:
    """As on an accelerator that lacks float64; the scalars themselves are the test's."""
    return Sums(ranks, device=torch.device("mps"))


def on_accelerator(ranks: Ranks) -> Sums:
    """As on an accelerator with float64, but in host memory."""
    return as_on_accelerator(on_cpu(ranks))


everywhere = pytest.mark.parametrize("make", [on_cpu, without_float64, on_accelerator])
by_ranks = pytest.mark.parametrize("ranks", [Ranks, TwoRanks])


def fresh(*names: str, make: Make = on_cpu) -> Sums:
    sums = make(Ranks())
    sums.open(rows_by_name(names))
    return sums


class Counted(TorchDispatchMode):
    """Counts torch's operations, and the tensors made of host data."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.from_host = 0
        made, as_made = torch.tensor, torch.as_tensor

        def tensor(*args, **kwargs):
            self.from_host += 1
            return made(*args, **kwargs)

        def as_tensor(*args, **kwargs):
            self.from_host += 1
            return as_made(*args, **kwargs)

        monkeypatch.setattr(torch, "tensor", tensor)
        monkeypatch.setattr(torch, "as_tensor", as_tensor)
        for name in ("tolist", "item", "cpu", "numpy"):
            self._count_reads(name, monkeypatch)
        self.reads = 0

    def _count_reads(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *args, **kwargs):
            self.reads += 1
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, read)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def whole_step(sums: Sums, *, tensors: int, micro_batches: int, blocks: int) -> None:
    """Adds what a step of a model with so many parameters, in so many blocks, adds."""
    names = [f"parts of {block}" for block in range(blocks)]
    scalars = torch.rand(tensors).unbind()
    sums.open(rows_by_name(["loss", *names]))
    for _ in range(micro_batches):
        sums.add("loss", scalars[0], coefficient=4.0)
        for block, name in enumerate(names):
            sums.add(name, *scalars[block::blocks], coefficient=4.0)
    sums.put({"parts": micro_batches, "digest": 17})


def test_weighted_sums_by_hand():
    sums = fresh("a", "b", "never")
    sums.add("a", torch.tensor(3.0), torch.tensor(1.0), coefficient=2.0)
    sums.add("b", torch.tensor(5.0, dtype=torch.float64))
    sums.add("a", torch.tensor(0.5, dtype=torch.bfloat16), coefficient=-1.0)
    sums.put({"weight": 4.0})
    assert sums.reduce() == {"a": 7.5, "b": 5.0, "never": 0.0, "weight": 4.0}


@everywhere
@by_ranks
@pytest.mark.parametrize("seed", range(3))
def test_sums_equal_those_of_a_naive_twin_whatever_is_added_scaled_and_dropped(make, ranks, seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    names = [f"name {number}" for number in range(9)]
    sums, terms = make(ranks()), []
    sums.open(rows_by_name(names))
    marks = [sums.mark()]
    for _ in range(300):
        name, coefficient = draw.choice(names), draw.gauss(0.0, 3.0)
        scalars = torch.randn(draw.choice([0, 1, 1, 3, 8, 9, 70])).unbind()
        sums.add(name, *scalars, coefficient=coefficient)
        terms.append([name, coefficient, [scalar.item() for scalar in scalars]])
        marks.append(sums.mark())
        if draw.random() < 0.1:
            start, stop = sorted(draw.choices(marks, k=2))
            sums.scale(start, stop, 1.5)
            for term in terms[start:stop]:
                term[1] *= 1.5
        if draw.random() < 0.05:
            sums.drop([name])
            for term in terms:
                if term[0] == name:
                    term[2] = []
    sums.put({"weight": 4.0})
    everyone = 2.0 if ranks is TwoRanks else 1.0
    found = sums.reduce()
    assert found.pop("weight") == 4.0 * everyone
    for name in names:
        products = [c * value for n, c, values in terms if n == name for value in values]
        magnitude = math.fsum(map(abs, products))
        assert found[name] == pytest.approx(
            everyone * math.fsum(products), abs=1e-14 * everyone * magnitude
        )


@everywhere
def test_sums_do_not_depend_on_when_the_scalars_were_packed(make):
    scalars = torch.randn(5 * LIMIT).unbind()
    expected = {"a": 0.0, "b": 0.0}
    for width in (1, 7, LIMIT - 1, LIMIT + 1):
        sums = fresh("a", "b", make=make)
        for at in range(0, len(scalars), width):
            sums.add("a", *scalars[at : at + width], coefficient=0.5)
        sums.add("b", scalars[3])
        expected["a"] = 0.5 * math.fsum(scalar.item() for scalar in scalars)
        expected["b"] = scalars[3].item()
        assert sums.reduce() == pytest.approx(expected, rel=1e-10)


@everywhere
def test_memory_does_not_grow_by_a_tensor_for_each_scalar(make):
    sums = fresh("a", make=make)
    for _ in range(20):
        sums.add("a", *torch.ones(LIMIT // 2).unbind())
        assert len(sums._scalars._waiting) <= LIMIT
    assert len(sums._scalars._rows) <= 20
    assert sums.reduce() == {"a": 10.0 * LIMIT}


def test_an_accelerator_keeps_one_value_of_an_add_of_many_scalars():
    sums = fresh("a", make=on_accelerator)
    for _ in range(20):
        sums.add("a", *torch.full((1000,), 0.1).unbind())
    assert sums._scalars.on_device().dtype is torch.float64
    assert len(sums._scalars.on_device()) == 20
    assert sums.reduce()["a"] == pytest.approx(20_000 * torch.tensor(0.1).item(), rel=1e-14)


@everywhere
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("coefficient", [1.0, 0.0])
@by_ranks
def test_one_sum_that_is_not_finite_is_seen_even_where_it_counts_nothing(
    make, bad, coefficient, ranks
):
    sums = make(ranks())
    sums.open(rows_by_name(["a", "b"]))
    sums.add("a", torch.tensor(1.0))
    sums.add("b", torch.tensor(bad), coefficient=coefficient)
    assert not all(map(math.isfinite, sums.reduce().values()))


@everywhere
@by_ranks
def test_a_dropped_value_that_is_not_finite_spoils_nothing(make, ranks):
    sums = make(ranks())
    sums.open(rows_by_name(["a", "b"]))
    sums.add("a", torch.tensor(1.0))
    sums.add("b", torch.tensor(math.nan))
    sums.drop(["b"])
    assert all(map(math.isfinite, sums.reduce().values()))


def test_small_differences_of_large_sums_survive():
    sums = fresh("large", "small")
    sums.add("large", torch.tensor(1e8), coefficient=1.0)
    sums.add("large", *torch.full((100,), 1e-3).unbind())
    assert sums.reduce()["large"] - 1e8 == pytest.approx(0.1, rel=1e-6)


@everywhere
def test_dropped_names_start_again_also_after_packing(make):
    sums = fresh("a", "b", make=make)
    sums.add("a", *torch.ones(LIMIT + 1).unbind())
    sums.add("b", torch.tensor(2.0))
    sums.drop({"a"})
    assert sums.reduce() == {"a": 0.0, "b": 2.0}
    sums.add("a", torch.tensor(4.0))
    assert sums.reduce() == {"a": 4.0, "b": 2.0}


def test_a_range_of_terms_is_scaled_and_no_other():
    sums = fresh("a", "b")
    sums.add("a", torch.tensor(1.0))
    start = sums.mark()
    sums.add("a", torch.tensor(10.0), torch.tensor(20.0), coefficient=2.0)
    sums.add("b", torch.tensor(3.0))
    stop = sums.mark()
    sums.add("a", torch.tensor(100.0))
    assert (start, stop) == (1, 3)
    sums.scale(start, stop, 10.0)
    sums.scale(stop, stop, math.nan)  # no term at all
    assert sums.reduce() == {"a": 701.0, "b": 30.0}


def test_marks_stay_valid_after_a_drop():
    sums = fresh("a", "b")
    sums.add("b", torch.tensor(1.0))
    start = sums.mark()
    sums.add("b", torch.tensor(1.0))
    sums.add("a", torch.tensor(2.0))
    stop = sums.mark()
    sums.drop(["b"])
    assert sums.mark() == stop
    sums.add("b", torch.tensor(5.0))
    sums.scale(start, stop, 3.0)
    assert sums.reduce() == {"a": 6.0, "b": 5.0}


@pytest.mark.parametrize("ends", [(0, 2), (-1, 1), (1, 0)])
def test_only_terms_of_this_step_can_be_scaled(ends):
    sums = fresh("a")
    sums.add("a", torch.tensor(1.0))
    with pytest.raises(
        ValueError, match=r"this step has 1 terms\. Take start and stop .* sums\.mark\(\)"
    ):
        sums.scale(*ends, 2.0)


def test_the_layout_is_that_of_open_whatever_was_added():
    sums = fresh("a", "b", "c")
    assert list(sums.reduce()) == ["a", "b", "c"]
    sums.add("c", torch.tensor(1.0))
    assert list(sums.reduce()) == ["a", "b", "c"]
    with pytest.raises(KeyError):
        sums.add("d", torch.tensor(1.0))
    with pytest.raises(KeyError):
        sums.drop(["d"])
    sums.open(rows_by_name(["d"]))
    assert sums.reduce() == {"d": 0.0}


@everywhere
def test_new_coefficients_are_not_taken_from_the_step_before(make):
    sums = make(TwoRanks())
    for coefficient in (1.0, 3.0, 1.0):
        sums.open(rows_by_name(["a"]))
        sums.add("a", torch.tensor(2.0), coefficient=coefficient)
        assert sums.reduce() == {"a": 2.0 * 2.0 * coefficient}


@everywhere
def test_a_step_without_scalars_sends_zeros_and_its_numbers(make):
    sums = make(TwoRanks())
    sums.open(rows_by_name(["a"]))
    sums.put({"parts": 3})
    assert sums.reduce() == {"a": 0.0, "parts": 6.0}


SIZES = [(3, 2, 1), (300, 8, 1), (300, 32, 1), (300, 8, 300), (1000, 8, 300)]


@pytest.mark.parametrize(("tensors", "micro_batches", "blocks"), SIZES)
@pytest.mark.parametrize("make", [without_float64, on_accelerator])
def test_an_accelerator_is_neither_written_to_nor_read_before_the_end_of_a_step(
    make, tensors, micro_batches, blocks, monkeypatch
):
    sums = make(TwoRanks())
    with Counted(monkeypatch) as counted:
        whole_step(sums, tensors=tensors, micro_batches=micro_batches, blocks=blocks)
    assert (counted.from_host, counted.reads) == (0, 0)
    assert "aten._local_scalar_dense" not in counted.operations


@pytest.mark.parametrize(("tensors", "micro_batches", "blocks"), SIZES)
def test_one_copy_goes_to_an_accelerator_one_comes_back_and_one_collective_runs(
    tensors, micro_batches, blocks, monkeypatch
):
    sums = on_accelerator(TwoRanks())
    whole_step(sums, tensors=tensors, micro_batches=micro_batches, blocks=blocks)
    with Counted(monkeypatch) as counted:
        sums.reduce()
    assert (counted.from_host, counted.reads, sums.ranks.collectives) == (1, 1, 1)
    assert counted.operations.total() < 20  # launches, whatever the number of scalars


@pytest.mark.parametrize(("tensors", "micro_batches", "blocks"), SIZES)
@pytest.mark.parametrize("make", [without_float64, on_accelerator])
def test_a_single_process_reads_an_accelerator_once_and_copies_nothing_to_it(
    make, tensors, micro_batches, blocks, monkeypatch
):
    sums = make(Ranks())
    whole_step(sums, tensors=tensors, micro_batches=micro_batches, blocks=blocks)
    with Counted(monkeypatch) as counted:
        sums.reduce()
    assert (counted.from_host, counted.reads) == (0, 1)


def test_adding_launches_less_than_one_kernel_for_many_scalars(monkeypatch):
    found = []
    for blocks in (1, 300):
        sums = on_accelerator(TwoRanks())
        with Counted(monkeypatch) as counted:
            whole_step(sums, tensors=300, micro_batches=8, blocks=blocks)
        found.append(counted.operations.total())
        monkeypatch.undo()
    assert max(found) < 8 * 4  # of 2400 scalars in 8 micro-batches


def test_two_ranks_on_cpus_send_one_row(monkeypatch):
    sums = on_cpu(TwoRanks())
    whole_step(sums, tensors=300, micro_batches=8, blocks=300)
    with Counted(monkeypatch) as counted:
        sums.reduce()
    assert (counted.from_host, sums.ranks.collectives) == (1, 1)
    assert set(counted.operations) <= {"aten._local_scalar_dense", "aten.mul_", "aten.lift_fresh"}
