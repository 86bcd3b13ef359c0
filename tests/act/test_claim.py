"""One optimizer has one control, whichever door came first."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import largebatch as lb

X, Y = torch.randn(32, 3), torch.randn(32, 1)


def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return lb.attach(model, optimizer, lb.AdaScale(), batch_size=8, base_batch_size=4)


def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return lb.watch(model, optimizer, batch_size=8)


def control(model: nn.Module, optimizer: torch.optim.Optimizer) -> lb.Controller:
    batches = lb.BatchLoader((X, Y), batch_size=8, max_micro_batch_size=4)
    return lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=4)


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def run(model: nn.Module, run: lb.Controller, *, steps: int, leave_after: int = 100) -> None:
    for count, batch in enumerate(run.steps(steps=steps), start=1):
        for x, y in batch:
            run.backward(mse_loss(model(x), y))
        run.step()
        if count == leave_after:
            break


DOORS = [attach, watch, control]
Door = Callable[[nn.Module, torch.optim.Optimizer], Any]


@pytest.mark.parametrize(
    ("first", "second"),
    [pair for pair in itertools.product(DOORS, DOORS) if pair != (control, control)],
)
def test_the_second_door_is_refused_until_the_first_is_closed(first: Door, second: Door) -> None:
    model, optimizer = parts()
    held = first(model, optimizer)
    hooks = len(optimizer._optimizer_step_pre_hooks)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"already uses this optimizer.*control\.close\(\)"):
            second(model, optimizer)
        assert len(optimizer._optimizer_step_pre_hooks) == hooks
    held.close()
    second(model, optimizer)


@pytest.mark.parametrize("door", [attach, watch])
def test_a_controller_that_was_left_early_blocks_and_one_that_is_done_does_not(door: Door) -> None:
    model, optimizer = parts()
    left = control(model, optimizer)
    run(model, left, steps=4, leave_after=2)
    with pytest.raises(ValueError, match=r"lb\.Controller already"):
        door(model, optimizer)
    run(model, left, steps=4)
    assert left.finished
    door(model, optimizer)


def test_a_controller_whose_budget_ended_with_a_break_does_not_block() -> None:
    model, optimizer = parts()
    done = control(model, optimizer)
    run(model, done, steps=2, leave_after=2)
    assert done.finished
    attach(model, optimizer)


def test_a_controller_that_was_dropped_does_not_block() -> None:
    model, optimizer = parts()
    dropped = control(model, optimizer)
    run(model, dropped, steps=4, leave_after=2)
    del dropped
    attach(model, optimizer)


def test_a_second_controller_after_one_that_is_between_steps_is_allowed() -> None:
    model, optimizer = parts()
    first = control(model, optimizer)
    run(model, first, steps=4, leave_after=2)
    second = control(model, optimizer)
    run(model, second, steps=2)
    assert second.optimizer_steps == 2


def test_a_closed_controller_does_not_go_on_beside_an_attached_rule() -> None:
    model, optimizer = parts()
    first = control(model, optimizer)
    run(model, first, steps=4, leave_after=2)
    first.close()
    attach(model, optimizer)
    with pytest.raises(ValueError, match=r"lb\.attach already"):
        run(model, first, steps=4)


def test_a_copy_of_the_optimizer_is_not_claimed() -> None:
    model, optimizer = parts()
    attach(model, optimizer)
    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    attach(copied, copied_optimizer)


@pytest.mark.parametrize("door", [attach, control])
def test_a_replaced_parameter_is_named(door: Door) -> None:
    model, optimizer = parts()
    held = door(model, optimizer)
    model.bias = nn.Parameter(torch.zeros(1))
    optimizer.param_groups[0]["params"][1] = model.bias
    with pytest.raises(lb.LargeBatchError, match="now it has 2; bias was replaced"):
        held.check_optimizer()


def test_the_order_of_the_parameters_may_change() -> None:
    model, optimizer = parts()
    held = attach(model, optimizer)
    optimizer.param_groups[0]["params"].reverse()
    held.check_optimizer()
    model.bias.requires_grad_(False)
    with pytest.raises(lb.LargeBatchError, match="had 2 trainable parameters"):
        held.check_optimizer()


def test_a_controller_whose_data_ended_does_not_block() -> None:
    model, optimizer = parts()
    micro_batches = iter([(X[at : at + 4], Y[at : at + 4]) for at in (0, 4, 8, 12)])
    batches = lb.BatchLoader(micro_batches, batch_size=8)
    held = lb.Controller(model, optimizer, lb.LinearScaling(), batches, base_batch_size=4)
    run(model, held, steps=100)
    assert not held.finished
    attach(model, optimizer)
