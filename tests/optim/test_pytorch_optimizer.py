"""Compare LAMB and LARS with pytorch_optimizer 4.1.0, and train its AdamP with a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import largebatch as lb
from naive_runs import step_with
from small_rules import Factor
from small_runs import data, loss_of, small_model, train, weights

others = pytest.importorskip("pytorch_optimizer")

Build = Callable[[list[nn.Parameter]], Optimizer]


OPTIONS: dict[str, Any] = {
    "bias_correction": False,
    "weight_norm_bounds": (0.0, 10.0),
    "always_adapt": True,
    "always_decay": True,
}
"""Options with which our LAMB equals theirs with `adam_debias=True` and `weight_decouple=False`."""


def relative_steps(build: Build, *, seed: int, constant: bool = False) -> list[Tensor]:
    """What 20 steps add to all weights, each parameter's share over its norm. One of four norms is
    far above 10, none is 0."""
    generator = torch.Generator().manual_seed(seed)

    def random() -> list[Tensor]:
        shapes = ((8, 6), (6,), (4, 3, 3), (5, 5))
        return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]

    sizes, gradients, found = (1.0, 0.1, 1.0, 40.0), random(), []
    parameters = [nn.Parameter(t * w) for t, w in zip(sizes, random(), strict=True)]
    optimizer = build(parameters)
    for _ in range(20):
        before = [p.detach().clone() for p in parameters]
        for p, g in zip(parameters, gradients if constant else random(), strict=True):
            p.grad = g.clone()
        optimizer.step()
        pairs = zip(parameters, before, strict=True)
        found.append(torch.cat([((p.detach() - b) / b.norm()).flatten() for p, b in pairs]))
    return found


def agree(ours: Build, theirs: Build, *, rtol: float) -> None:
    for seed in range(3):
        steps = relative_steps(ours, seed=seed), relative_steps(theirs, seed=seed)
        for one, other in zip(*steps, strict=True):
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * one.abs().max().item())


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_with_the_same_options_takes_the_same_steps(decay: float, foreach: bool) -> None:
    options = {"lr": 0.02, "weight_decay": decay}
    theirs = {"weight_decouple": False, "adam_debias": True, "foreach": foreach}
    agree(
        lambda p: lb.optim.Lamb(p, **options, **OPTIONS),
        lambda p: others.Lamb(p, **options, **theirs),
        rtol=2e-6,  # theirs adds eps to |u|, too
    )


@pytest.mark.parametrize(
    "other",
    [
        {"bias_correction": True},
        {"weight_norm_bounds": None},
        {"always_adapt": False},
        {"always_decay": False},
    ],
)
def test_lamb_with_any_other_option_takes_other_steps(other: dict[str, Any]) -> None:
    options = {"lr": 0.02, "weight_decay": 0.1}
    with pytest.raises(AssertionError):
        agree(
            lambda p: lb.optim.Lamb(p, **options, **(OPTIONS | other)),
            lambda p: others.Lamb(p, **options, weight_decouple=False, adam_debias=True),
            rtol=1e-3,
        )


def test_without_adam_debias_its_first_relative_step_is_ten_times_the_rate() -> None:
    def first(build: Build) -> float:
        return relative_steps(build, seed=0, constant=True)[0][:48].norm().item()

    assert first(lambda p: others.Lamb(p, lr=0.02)) == pytest.approx(0.2, rel=1e-5)
    assert first(lambda p: others.Lamb(p, lr=0.02, adam_debias=True)) == pytest.approx(0.02)
    assert first(lambda p: lb.optim.Lamb(p, lr=0.02)) == pytest.approx(0.02)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_with_the_same_options_takes_the_same_steps(
    decay: float, nesterov: bool, foreach: bool
) -> None:
    options = {"lr": 3.0, "weight_decay": decay, "trust_coefficient": 0.01, "nesterov": nesterov}
    agree(
        lambda p: lb.optim.Lars(p, eps=0.0, **options),
        lambda p: others.LARS(p, foreach=foreach, **options),
        rtol=1e-10,
    )


def test_adamp_trains_under_a_rule_that_changes_the_rate() -> None:
    model, (x, y) = small_model(), data()
    before = loss_of(model, x, y).item()
    optimizer = others.AdamP(model.parameters(), lr=0.01)
    batches = lb.BatchLoader((x, y), batch_size=16, max_micro_batch_size=8, seed=0)
    rule = lb.chain(lb.SqrtScaling(), lb.Schedule(factor=lb.Cosine()))
    control = lb.Controller(model, optimizer, rule, batches, base_batch_size=4)
    rates = {decision.lr_multiplier for decision in train(control, base_steps=200)}
    assert len(rates) > 40
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert loss_of(model, x, y).item() < 0.5 * before


def test_adamp_under_attach_moves_as_a_loop_at_the_multiplied_rate() -> None:
    model, twin = small_model(), small_model()
    optimizer, other = (others.AdamP(each.parameters(), lr=0.01) for each in (model, twin))
    control = lb.attach(model, optimizer, Factor(factor=3.0), batch_size=16, base_batch_size=4)
    for step in range(5):
        x, y = data(16, seed=step)
        for rows in torch.arange(16).split(8):
            for each in (model, twin):
                (loss_of(each, x[rows], y[rows]) / 2).backward()
        optimizer.step()
        step_with(other, 3.0)
        for each in (optimizer, other):
            each.zero_grad()
        control.advance()
    control.close()
    assert all(map(torch.equal, weights(model), weights(twin)))
