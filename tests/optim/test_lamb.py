"""Test LAMB: its formula under every option, and the length of its steps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from optimizer_twin import naive_lamb, problem
from torch import Tensor, nn

import largebatch as lb
from largebatch.optim import Lamb
from largebatch.optim.lamb import bias_correction, lamb_trust_ratio

OPTIONS = {
    "bias_correction": (True, False),
    "weight_norm_bounds": (None, (0.5, 2.0)),
    "max_trust_ratio": (None, 0.8),
    "decoupled_weight_decay": (False, True),
    "always_adapt": (False, True),
    "always_decay": (False, True),
    "weight_decay": (0.0, 0.1),
}
EVERY = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]


def moved(
    weights: list[Tensor], gradients: list[list[Tensor]], rates: list[float], **options: Any
) -> list[Tensor]:
    """The weights after all steps of the optimizer."""
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = Lamb(parameters, lr=1.0, **options)
    for step, lr in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def one_step(w: Tensor, g: Tensor, **options: Any) -> Tensor:
    """Return what one step at the learning rate 0.1 adds to the weights."""
    return moved([w], [[g]], [0.1], **options)[0] - w


@pytest.mark.parametrize(
    "options", EVERY, ids=lambda options: " ".join(k for k, v in options.items() if v) or "none"
)
def test_twenty_steps_equal_those_of_the_naive_twin(options: dict[str, Any]) -> None:
    for fast, naive in zip(
        moved(*problem(), **options), naive_lamb(*problem(), **options), strict=True
    ):
        torch.testing.assert_close(fast, naive, rtol=1e-10, atol=1e-12)


def test_other_betas_equal_those_of_the_naive_twin() -> None:
    options = {"betas": (0.0, 0.0), "eps": 0.1}
    for fast, naive in zip(
        moved(*problem(), **options), naive_lamb(*problem(), **options), strict=True
    ):
        torch.testing.assert_close(fast, naive, rtol=1e-10, atol=1e-12)


def test_a_step_computed_by_hand() -> None:
    w, g = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
    # u = (1, -1): 0.1 * 5 / sqrt(2) of it
    torch.testing.assert_close(one_step(w, g), torch.tensor([[-0.353553, 0.353553]]))
    # u = (1.3, -0.6), |u| = 1.431782: 0.1 * 5 / 1.431782 = 0.349215 of it
    torch.testing.assert_close(
        one_step(w, g, weight_decay=0.1), torch.tensor([[-0.453980, 0.209529]])
    )
    # the decay of 0.01 w beside it
    torch.testing.assert_close(
        one_step(w, g, weight_decay=0.1, decoupled_weight_decay=True),
        torch.tensor([[-0.383553, 0.313553]]),
    )


@pytest.mark.parametrize("corrected", [True, False])
def test_every_relative_step_under_a_constant_gradient_is_the_learning_rate(
    corrected: bool,
) -> None:
    """If the learning rate were corrected in place of the averages, the first of these values would
    be 10.
    """
    weight = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    gradient = torch.randn(5, 4, dtype=torch.float64)
    optimizer = Lamb([weight], lr=0.01, bias_correction=corrected)
    for _ in range(30):
        before, weight.grad = weight.detach().clone(), gradient.clone()
        optimizer.step()
        relative = (weight - before).norm() / before.norm() / 0.01
        assert relative.item() == pytest.approx(1.0, rel=1e-12)


def test_the_correction_of_the_averages_changes_no_layer_without_weight_decay() -> None:
    with_it, without = (moved(*problem(), eps=1e-30, bias_correction=on) for on in (True, False))
    for index in (0, 2, 6):
        torch.testing.assert_close(with_it[index], without[index], rtol=1e-10, atol=0)
    assert not torch.allclose(with_it[1], without[1]), "biases take Adam's own step"


def test_a_layer_of_zeros_takes_adams_step() -> None:
    step = one_step(torch.zeros(2, 2), torch.tensor([[2.0, -3.0], [4.0, -5.0]]))
    torch.testing.assert_close(step, 0.1 * torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_a_lower_bound_of_the_norm_holds_for_a_layer_of_zeros() -> None:
    step = one_step(torch.zeros(2, 2), torch.ones(2, 2), weight_norm_bounds=(0.5, math.inf))
    assert step.norm().item() == pytest.approx(0.05)


def test_an_upper_bound_of_the_norm_shortens_the_step_of_a_large_layer() -> None:
    w = torch.full((2, 2), 100.0)
    assert one_step(w, torch.ones(2, 2)).norm().item() == pytest.approx(20.0)
    step = one_step(w, torch.ones(2, 2), weight_norm_bounds=(0.0, 10.0))
    assert step.norm().item() == pytest.approx(1.0)


def test_a_bound_of_the_ratio_shortens_the_step_to_adams() -> None:
    w = torch.full((2, 2), 100.0)
    step = one_step(w, torch.ones(2, 2), max_trust_ratio=1.0)
    torch.testing.assert_close(step, torch.full((2, 2), -0.1))


def test_without_gradient_and_decay_nothing_moves() -> None:
    for w in (torch.randn(3, 2), torch.zeros(3, 2), torch.randn(3)):
        assert torch.equal(moved([w], [[torch.zeros_like(w)]] * 3, [0.1] * 3)[0], w)


def test_the_ratio_is_one_where_a_norm_is_zero() -> None:
    norms = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([0.0, 3.0, 0.0, 4.0])
    assert lamb_trust_ratio(*norms).tolist() == [1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.99999])
def test_the_correction_keeps_its_digits_in_float32(beta: float) -> None:
    steps = torch.tensor([1.0, 2.0, 10.0, 1e5])
    expected = torch.tensor([1.0 - beta**t for t in (1, 2, 10, 100_000)])
    torch.testing.assert_close(bias_correction(steps, beta), expected, rtol=1e-6, atol=0.0)


def test_what_is_no_layer_takes_the_steps_of_adamw() -> None:
    weights, gradients, _ = problem()
    weights, gradients = weights[1:2], [step[1:2] for step in gradients]
    options: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    twin = nn.Parameter(weights[0].clone())
    adamw = torch.optim.AdamW([twin], lr=0.05, **options)
    for (gradient,) in gradients:
        twin.grad = gradient.clone()
        adamw.step()
    options["always_decay"] = True
    for decoupled in (True, False):  # the same without a ratio
        options["decoupled_weight_decay"] = decoupled
        (ours,) = moved(weights, gradients, [0.05] * len(gradients), **options)
        torch.testing.assert_close(ours, twin.detach(), rtol=1e-12, atol=1e-14)


def test_gradients_that_differ_by_a_factor_move_a_layer_alike() -> None:
    weights, gradients, rates = problem()
    larger = [[1000.0 * g for g in step] for step in gradients]
    once, again = (moved(weights, each, rates, eps=1e-30) for each in (gradients, larger))
    for index in (0, 2, 6):
        torch.testing.assert_close(once[index], again[index], rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -0.1}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"lr": torch.ones(2)}, "lr"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (-0.1, 0.9)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"eps": 0.0}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_norm_bounds": (2.0, 1.0)}, "weight_norm_bounds"),
        ({"weight_norm_bounds": (-1.0, 1.0)}, "weight_norm_bounds"),
        ({"weight_norm_bounds": (0.0, 0.0)}, "weight_norm_bounds"),
        ({"max_trust_ratio": 0.0}, "max_trust_ratio"),
    ],
)
def test_a_bad_hyper_parameter_is_refused_with_a_line_that_works(
    options: dict[str, Any], named: str
) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=rf"^{named} must be .* given\. Use lb\.optim\.Lamb") as e:
        Lamb(model.parameters(), **{"lr": 0.01, **options})
    line = str(e.value).rpartition("Use ")[2].removesuffix(".")
    assert isinstance(eval(line, {"lb": lb, "model": model}), Lamb)
