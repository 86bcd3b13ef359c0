"""Test AdaGrad-Norm: its formula, its sum, its saved state and its errors."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from optimizer_twin import naive_adagrad_norm, problem
from torch import Tensor, nn

import largebatch as lb
from largebatch.optim import AdaGradNorm
from round_trips import through_a_file
from small_runs import data, loss_of, small_model, weights


def steps_of(optimizer: Any, gradients: list[list[Tensor]], rates: list[float]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step, lr in zip(gradients, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


def train(model: nn.Module, optimizer: Any, steps: int, *, first: int = 0) -> list[Tensor]:
    dtype = next(model.parameters()).dtype
    for step in range(first, first + steps):
        x, y = data(16, seed=step)
        optimizer.zero_grad()
        loss_of(model, x.to(dtype), y.to(dtype)).backward()
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"eps": 0.5}, {"initial_sum": 2.0, "weight_decay": 0.01}],
    ids=["none", "decay", "eps", "initial"],
)
def test_twenty_steps_equal_those_of_the_naive_twin(options: dict[str, Any]) -> None:
    initial, gradients, rates = problem()
    parameters = [nn.Parameter(w.clone()) for w in initial]
    steps_of(AdaGradNorm(parameters, lr=1.0, **options), gradients, rates)
    for fast, naive in zip(
        parameters, naive_adagrad_norm(initial, gradients, rates, **options), strict=True
    ):
        torch.testing.assert_close(fast.detach(), naive, rtol=1e-10, atol=1e-12)


def test_the_sum_is_one_over_all_groups_and_a_group_has_its_own_rate() -> None:
    initial, gradients, rates = problem()
    parameters = [nn.Parameter(w.clone()) for w in initial]
    groups: Any = [{"params": []}, {"params": parameters[:3]}, {"params": parameters[3:]}]
    optimizer = AdaGradNorm(groups, lr=1.0)
    steps_of(optimizer, gradients, rates)
    expected = naive_adagrad_norm(initial, gradients, rates)
    for fast, naive in zip(parameters, expected, strict=True):
        torch.testing.assert_close(fast.detach(), naive, rtol=1e-10, atol=1e-12)
    total = sum(g.square().sum().item() for step in gradients for g in step)
    assert optimizer.sum.item() == pytest.approx(total)
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    apart = AdaGradNorm([{"params": [a]}, {"params": [b], "lr": 5.0}], lr=10.0)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    apart.step()
    assert (a.item(), b.item()) == (pytest.approx(-6.0), pytest.approx(-4.0))


def test_two_steps_by_hand() -> None:
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = AdaGradNorm([w], lr=1.0)
    steps_of(optimizer, [[torch.tensor([3.0])], [torch.tensor([4.0])]], [1.0, 1.0])
    assert w.item() == pytest.approx(1.0 - 3 / 3 - 4 / 5)
    assert optimizer.sum.item() == 25.0


def test_a_zero_gradient_moves_nothing_and_one_that_is_missing_adds_nothing() -> None:
    w, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdaGradNorm([unused, w], lr=1.0)
    optimizer.step()
    w.grad = torch.zeros(2)
    optimizer.step()
    assert w.tolist() == unused.tolist() == [1.0, 1.0]
    assert optimizer.sum.item() == 0.0


def test_adagrad_norm_does_not_change_the_gradient() -> None:
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.tensor([3.0, 4.0])
    AdaGradNorm([w], lr=1.0, weight_decay=0.5).step()
    assert w.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("way", ["memory", "file", "pickle"])
def test_a_run_goes_on_from_its_state_with_the_same_bits(dtype: torch.dtype, way: str) -> None:
    model = small_model().to(dtype)
    optimizer: Any = AdaGradNorm(model.parameters(), lr=0.5, weight_decay=0.01)
    train(model, optimizer, 4)
    state, kept = copy.deepcopy((optimizer.state_dict(), model))
    if way == "file":
        state = through_a_file(state)
    whole = train(model, optimizer, 4, first=4)
    if way == "pickle":
        both = pickle.loads(pickle.dumps((kept, AdaGradNorm(kept.parameters(), lr=0.5))))
        kept, other = both
    else:
        other = AdaGradNorm(kept.parameters(), lr=9.0)
    other.load_state_dict(state)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert other.sum.dtype is wide
    assert all(map(torch.equal, train(kept, other, 4, first=4), whole))


def test_a_norm_of_many_equal_elements_loses_nothing() -> None:
    w = nn.Parameter(torch.zeros(4_000_000))
    w.grad = torch.full_like(w, 1e-3)
    optimizer = AdaGradNorm([w], lr=1.0)
    optimizer.step()
    assert optimizer.sum.item() == pytest.approx(4.0, rel=1e-5)


def test_a_rate_in_a_tensor_moves_as_a_number_does() -> None:
    one, other = small_model(), small_model()
    train(one, AdaGradNorm(one.parameters(), lr=0.5), 3)
    train(other, AdaGradNorm(other.parameters(), lr=torch.tensor(0.5)), 3)
    for a, b in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b)


def test_training_lowers_the_loss() -> None:
    model = small_model()
    x, y = data()
    before = loss_of(model, x, y).item()
    train(model, AdaGradNorm(model.parameters(), lr=1.0), 60)
    assert loss_of(model, x, y).item() < 0.7 * before


def test_a_closure_is_called_and_a_sparse_gradient_is_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = lb.optim.AdaGradNorm([w], lr=1.0)

    def closure() -> float:
        w.grad = torch.ones(2)
        return 7.0

    assert optimizer.step(closure) == 7.0
    w.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match="AdaGradNorm does not support sparse"):
        optimizer.step()


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"eps": 0.0}, {"weight_decay": -0.1}, {"initial_sum": -1.0}, {"lr": math.nan}],
)
def test_arguments_out_of_range_are_refused_with_a_line_to_paste(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Use lb\.optim\.AdaGradNorm\(model\.parameters"):
        AdaGradNorm([nn.Parameter(torch.ones(1))], **{"lr": 0.1, **wrong})
    (name,) = wrong
    if name != "initial_sum":
        with pytest.raises(ValueError, match=name):
            AdaGradNorm([{"params": [nn.Parameter(torch.ones(1))], **wrong}], lr=0.1)
