"""Test the optimizers with `Controller` and `attach`, where a rule sets the learning rate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import largebatch as lb
from naive_runs import step_with
from small_rules import Factor
from small_runs import data, loss_of, small_model, train, weights

Build = Callable[[nn.Module], Optimizer]


def lamb(model: nn.Module) -> Optimizer:
    return lb.optim.Lamb(model.parameters(), lr=0.01, weight_decay=0.01)


def lars(model: nn.Module) -> Optimizer:
    return lb.optim.Lars(model.parameters(), lr=0.05, trust_coefficient=0.1)


def adagrad_norm(model: nn.Module) -> Optimizer:
    return lb.optim.AdaGradNorm(model.parameters(), lr=0.5)


each = pytest.mark.parametrize("build", [lamb, lars, adagrad_norm])


@each
def test_adascale_trains_under_the_controller(build: Build) -> None:
    model, (x, y) = small_model(), data()
    before = loss_of(model, x, y).item()
    batches = lb.BatchLoader((x, y), batch_size=16, max_micro_batch_size=4, seed=0)
    optimizer = build(model)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=4)
    rate = optimizer.param_groups[0]["lr"]
    decisions = train(control, steps=60, clip_norm=1.0)
    assert any(decision.lr_multiplier > 1.1 for decision in decisions)
    assert optimizer.param_groups[0]["lr"] == rate
    assert loss_of(model, x, y).item() < 0.7 * before


@each
def test_a_rule_under_attach_moves_as_a_loop_at_the_multiplied_rate(build: Build) -> None:
    model, twin = small_model(), small_model()
    optimizer, other = build(model), build(twin)
    control = lb.attach(model, optimizer, Factor(factor=3.0), batch_size=16, base_batch_size=4)
    for step in range(5):
        x, y = data(16, seed=step)
        for rows in torch.arange(16).split(8):
            (loss_of(model, x[rows], y[rows]) / 2).backward()
            (loss_of(twin, x[rows], y[rows]) / 2).backward()
        optimizer.step()
        step_with(other, 3.0)
        for one in (optimizer, other):
            one.zero_grad()
        control.advance()
    control.close()
    assert all(map(torch.equal, weights(model), weights(twin)))


@each
def test_the_statistic_of_adam_is_refused(build: Build) -> None:
    model = small_model()
    batches = lb.BatchLoader(data(), batch_size=16, max_micro_batch_size=4)
    rule = lb.AdaScale(statistic="preconditioned_moments")
    with pytest.raises(ValueError, match=r"preconditioned_moments(.|\n)*the Adam family"):
        lb.Controller(model, build(model), rule, batches, base_batch_size=4)
