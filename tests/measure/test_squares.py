"""Squared norms: no overflow, no lost digits, any layout."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from largebatch.measure.complex_gradients import as_real
from largebatch.measure.squares import (
    ROW,
    _fused,
    squared_norm,
    squared_norm_of_each,
    squared_norms,
)


def exact(tensor: torch.Tensor) -> float:
    return tensor.double().square().sum().item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_squared_in_float32(dtype):
    large = torch.full((1000,), 300.0, dtype=dtype)  # 300^2 is beyond float16
    assert squared_norm(large).item() == pytest.approx(exact(large), rel=1e-6)
    small = torch.full((1000,), 1e-4, dtype=dtype)  # 1e-8 is below float16
    assert squared_norm(small).item() == pytest.approx(exact(small), rel=1e-6)
    mixed = torch.randn(10_000).to(dtype)
    assert squared_norm(mixed).dtype is torch.float32
    assert squared_norm(mixed).item() == pytest.approx(exact(mixed), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_million_elements_lose_less_than_one_part_in_ten_thousand(dtype):
    alike = torch.full((10_000_000,), 0.1, dtype=dtype)  # rounding that does not average out
    assert squared_norm(alike).item() == pytest.approx(exact(alike), rel=1e-4)
    mixed = torch.randn(10_000_000).to(dtype)
    assert squared_norm(mixed).item() == pytest.approx(exact(mixed), rel=1e-5)


def test_float64_stays_float64():
    tensor = torch.randn(3, 1000, dtype=torch.float64)
    assert squared_norm(tensor).item() == pytest.approx(exact(tensor), rel=1e-14)
    assert squared_norm(tensor.t()).item() == pytest.approx(exact(tensor), rel=1e-14)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (ROW,), (ROW + 1,), (2 * ROW, 3)])
def test_any_size_equals_the_sum_of_squares(shape):
    tensor = torch.randn(shape)
    assert squared_norm(tensor).dim() == 0
    assert squared_norm(tensor).item() == pytest.approx(exact(tensor), rel=1e-5)  # see `ROW`


def test_any_layout_equals_the_sum_of_squares():
    base = torch.randn(4, 3, 8, 8)
    layouts = [
        base.permute(2, 0, 3, 1),
        base.contiguous(memory_format=torch.channels_last),
        base[:, 1],
        base[..., ::2],
        torch.randn(5, 1).expand(5, 7),
        torch.randn(3).expand(2, 3),
    ]
    for tensor in layouts:
        assert squared_norm(tensor).item() == pytest.approx(exact(tensor), rel=1e-6)


def test_repeated_indices_of_a_sparse_gradient_are_added_before_squaring():
    table = torch.nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 1, 2])).sum().backward()
    assert squared_norm(table.weight.grad).item() == 3 * (2.0**2 + 1.0)
    assert sum(s.item() for s in squared_norms([table.weight.grad, torch.ones(2)])) == 17.0


def test_several_tensors_sum_to_their_squared_norms():
    tensors = [torch.randn(3), torch.randn(2, 2), torch.randn(4).bfloat16()]
    total = sum(s.item() for s in squared_norms(tensors))
    assert total == pytest.approx(sum(map(exact, tensors)), rel=1e-6)
    assert squared_norms([]) == []


@pytest.mark.parametrize("norms", [squared_norm_of_each, _fused])
def test_each_of_several_tensors_has_its_squared_norm_in_their_order(norms):
    tensors = [
        torch.randn(3),
        torch.randn(2, 2).bfloat16(),
        torch.randn(4, 5).t(),
        torch.randn(6).double(),
        torch.randn(2, 3, dtype=torch.complex64),
        torch.zeros(0),
    ]
    for order in (tensors, tensors[::-1]):
        found = [square.item() for square in norms(order)]
        assert found == pytest.approx([exact(as_real(tensor)) for tensor in order], rel=1e-6)


def test_tensors_squared_together_take_few_operations_whatever_their_number():
    class Counted(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    found = []
    for number in (3, 300):
        with Counted() as counted:
            _fused(list(torch.ones(number, 4).unbind()))
        found.append(counted.count)
    assert found[0] == found[1]
    assert squared_norm_of_each([]) == []
