"""Test LARS: its formula under every option, and the length of its steps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from optimizer_twin import naive_lars, problem
from torch import Tensor, nn

import largebatch as lb
from largebatch.optim import Lars
from largebatch.optim.lars import lars_trust_ratio

OPTIONS = {
    "momentum": (0.0, 0.9),
    "nesterov": (False, True),
    "lr_in_buffer": (False, True),
    "eps": (1e-8, 0.5),
    "always_adapt": (False, True),
    "always_decay": (False, True),
    "weight_decay": (0.0, 0.1),
}
EVERY = [
    options
    for values in itertools.product(*OPTIONS.values())
    if (options := dict(zip(OPTIONS, values, strict=True)))["momentum"] or not options["nesterov"]
]


def moved(
    weights: list[Tensor], gradients: list[list[Tensor]], rates: list[float], **options: Any
) -> list[Tensor]:
    """The weights after all steps of the optimizer."""
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = Lars(parameters, lr=1.0, **options)
    for step, lr in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(
    "options", EVERY, ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items() if v)
)
def test_twenty_steps_equal_those_of_the_naive_twin(options: dict[str, Any]) -> None:
    options = {"trust_coefficient": 0.3, **options}
    for fast, naive in zip(
        moved(*problem(), **options), naive_lars(*problem(), **options), strict=True
    ):
        torch.testing.assert_close(fast, naive, rtol=1e-10, atol=1e-12)


def test_two_steps_computed_by_hand() -> None:
    w, g = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    options = {"trust_coefficient": 0.02, "weight_decay": 0.1, "eps": 0.0}
    # ratio 0.02 * 5 / (2 + 0.5) = 0.04, d = 0.04 (0.3, 2.4) = (0.012, 0.096)
    (once,) = moved([w], [[g]], [10.0], **options)
    torch.testing.assert_close(once, torch.tensor([[2.88, 3.04]]))
    # |w| = 4.187601, ratio 0.083752 / 2.418760 = 0.0346260, d = 0.0346260 (0.288, 2.304)
    # v = 0.9 (0.012, 0.096) + (0.00997229, 0.0797783) = (0.0207723, 0.1661783)
    (outside,) = moved([w], [[g], [g]], [10.0, 1.0], **options)
    torch.testing.assert_close(outside, torch.tensor([[2.8592277, 2.8738217]]))
    # v = 0.9 * 10 (0.012, 0.096) + (0.00997229, 0.0797783): the old rate goes on
    (within,) = moved([w], [[g], [g]], [10.0, 1.0], lr_in_buffer=True, **options)
    torch.testing.assert_close(within, torch.tensor([[2.7620277, 2.0962217]]))


def test_the_place_of_a_constant_rate_makes_no_difference() -> None:
    weights, gradients, _ = problem()
    for nesterov in (False, True):
        options = {"nesterov": nesterov, "weight_decay": 0.1}
        outside, within = (
            moved(weights, gradients, [0.7] * len(gradients), lr_in_buffer=place, **options)
            for place in (False, True)
        )
        for one, other in zip(outside, within, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_a_rate_of_zero_stops_at_once_unless_it_is_in_the_buffer() -> None:
    w, g = torch.randn(3, 2), torch.randn(3, 2)
    (before,) = moved([w], [[g]], [1.0])
    assert torch.equal(moved([w], [[g], [g]], [1.0, 0.0])[0], before)
    (after,) = moved([w], [[g], [g]], [1.0, 0.0], lr_in_buffer=True)
    torch.testing.assert_close(after - before, 0.9 * (before - w))


def test_gradients_that_differ_by_a_factor_move_a_layer_alike() -> None:
    weights, gradients, rates = problem()
    larger = [[1000.0 * g for g in step] for step in gradients]
    once, again = (moved(weights, each, rates, eps=0.0) for each in (gradients, larger))
    for index in (0, 2, 6):
        torch.testing.assert_close(once[index], again[index], rtol=1e-10, atol=0)


def test_one_gradient_moves_a_layer_by_at_most_the_rate_and_coefficient_of_its_norm() -> None:
    weights, gradients, _ = problem()
    layers = [0, 2, 5, 6]
    ends = moved(weights, gradients[:1], [2.0], trust_coefficient=0.01, weight_decay=0.1)
    for index in layers:
        step = (ends[index] - weights[index]).norm()
        assert step <= 2.0 * 0.01 * weights[index].norm() * (1 + 1e-12)


def test_a_layer_of_zeros_takes_sgds_step() -> None:
    g = torch.randn(2, 2)
    (end,) = moved([torch.zeros(2, 2)], [[g]], [0.1])
    torch.testing.assert_close(end, -0.1 * g)


def test_without_gradient_and_decay_nothing_moves() -> None:
    for eps, w in itertools.product((0.0, 1e-8), (torch.randn(3, 2), torch.zeros(3, 2))):
        assert torch.equal(moved([w], [[torch.zeros_like(w)]] * 3, [0.1] * 3, eps=eps)[0], w)


def test_next_to_no_gradient_gives_no_infinity() -> None:
    (end,) = moved([torch.ones(2, 2)], [[torch.full((2, 2), 1e-42)]], [1.0])
    assert torch.equal(end, torch.ones(2, 2))


def test_the_ratio_is_one_where_weights_or_all_else_are_zero() -> None:
    norms = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([0.0, 3.0, 0.0, 4.0])
    for eps in (0.0, 1e-8):
        ratio = lars_trust_ratio(*norms, trust_coefficient=1.0, eps=eps)
        assert ratio.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.5])


def test_the_ratio_has_no_jump_where_only_the_gradient_vanishes() -> None:
    weights, gradients = torch.tensor([2.0, 2.0]), torch.tensor([0.0, 1e-6])
    at, near = lars_trust_ratio(
        weights, gradients, trust_coefficient=0.001, weight_decay=0.1
    ).tolist()
    assert at == pytest.approx(0.01)
    assert near == pytest.approx(at, rel=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_what_is_no_layer_takes_the_steps_of_sgd(nesterov: bool) -> None:
    weights, gradients, rates = problem()
    twin = nn.Parameter(weights[1].clone())
    options = {"momentum": 0.8, "weight_decay": 0.1, "nesterov": nesterov}
    sgd = torch.optim.SGD([twin], lr=1.0, **options)
    for step, lr in zip(gradients, rates, strict=True):
        sgd.param_groups[0]["lr"] = lr
        twin.grad = step[1].clone()
        sgd.step()
    alone = [[step[1]] for step in gradients]
    (ours,) = moved(weights[1:2], alone, rates, always_decay=True, **options)
    torch.testing.assert_close(ours, twin.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -0.1}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"trust_coefficient": 0.0}, "trust_coefficient"),
        ({"trust_coefficient": math.inf}, "trust_coefficient"),
        ({"eps": -1.0}, "eps"),
    ],
)
def test_a_bad_hyper_parameter_is_refused_with_a_line_that_works(
    options: dict[str, Any], named: str
) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=rf"^{named} .* was given\. Use lb\.optim\.Lars") as e:
        Lars(model.parameters(), **{"lr": 0.01, **options})
    line = str(e.value).rpartition("Use ")[2].removesuffix(".")
    assert isinstance(eval(line, {"lb": lb, "model": model}), Lars)
