"""Rates are multiplied inside a step only; torch's schedulers follow a clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from largebatch.act.learning_rate import LrActuator, tick
from small_runs import small_model

Schedule = Callable[[Optimizer], LRScheduler]


def optimizer_of(*rates: Any) -> SGD:
    model = small_model()
    layers = [model[0], model[2]][: len(rates)]
    groups = [{"params": list(layer.parameters())} for layer in layers]
    if len(set(map(id, rates))) == 1:
        return SGD(groups, lr=rates[0])
    return SGD([{**group, "lr": lr} for group, lr in zip(groups, rates, strict=True)], lr=0.1)


def rates_of(optimizer: Optimizer) -> list[float]:
    return [pytest.approx(float(group["lr"])) for group in optimizer.param_groups]


@contextmanager
def applied(lr: LrActuator, multiplier: float) -> Iterator[None]:
    lr.apply(multiplier)
    yield
    lr.restore()


# The actuator


def test_each_group_has_its_own_rate_multiplied_and_restored() -> None:
    optimizer = optimizer_of(0.1, 0.02)
    lr = LrActuator(optimizer)
    with applied(lr, 2.5):
        assert rates_of(optimizer) == [0.25, 0.05]
        assert lr.base_lr == 0.1
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]


def test_a_tensor_rate_keeps_its_identity() -> None:
    rate = torch.tensor(0.1)
    optimizer = optimizer_of(rate)
    with applied(LrActuator(optimizer), 3.0):
        assert optimizer.param_groups[0]["lr"] is rate
        assert rates_of(optimizer) == [0.3]
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == torch.tensor(0.1).item()


def test_a_tensor_that_groups_share_is_multiplied_once() -> None:
    rate = torch.tensor(0.1)
    optimizer = optimizer_of(rate, rate)
    assert optimizer.param_groups[0]["lr"] is optimizer.param_groups[1]["lr"]
    with applied(LrActuator(optimizer), 3.0):
        assert rates_of(optimizer) == [0.3, 0.3]
    assert rates_of(optimizer) == [0.1, 0.1]


def test_applying_twice_multiplies_the_users_rate_and_not_the_multiplied_one() -> None:
    optimizer = optimizer_of(0.1)
    lr = LrActuator(optimizer)
    lr.apply(2.0)
    lr.apply(5.0)
    assert rates_of(optimizer) == [0.5]
    lr.restore()
    lr.restore()
    assert rates_of(optimizer) == [0.1]


def test_a_rate_that_changed_between_steps_is_the_one_that_is_multiplied() -> None:
    optimizer = optimizer_of(0.1)
    lr = LrActuator(optimizer)
    with applied(lr, 2.0):
        pass
    optimizer.param_groups[0]["lr"] = 0.01
    with applied(lr, 2.0):
        assert rates_of(optimizer) == [0.02]
    assert rates_of(optimizer) == [0.01]


def test_an_optimizer_without_a_rate_is_refused() -> None:
    class Rateless(Optimizer):
        pass

    optimizer = Rateless(nn.Linear(1, 1).parameters(), {})
    with pytest.raises(ValueError, match=r"Rateless has a parameter group without a learning rate"):
        LrActuator(optimizer)


# Ticks

SCHEDULES: dict[str, Schedule] = {
    "StepLR": lambda optimizer: StepLR(optimizer, step_size=3, gamma=0.5),
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, T_max=30),
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda at: 1.0 / (1 + at)),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.5, total_steps=30),
    "SequentialLR": lambda optimizer: SequentialLR(
        optimizer,
        [LinearLR(optimizer, total_iters=5), CosineAnnealingLR(optimizer, T_max=20)],
        milestones=[5],
    ),
    "ChainedScheduler": lambda optimizer: ChainedScheduler(
        [LinearLR(optimizer, total_iters=5), StepLR(optimizer, step_size=4)]
    ),
}


def built(schedule: Schedule) -> tuple[SGD, LRScheduler]:
    """After one step of the optimizer, before which torch warns of a scheduler's."""
    optimizer = optimizer_of(0.1)
    scheduler = schedule(optimizer)
    optimizer.step()
    return optimizer, scheduler


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduler_stands_where_that_many_steps_would_have_left_it(name: str) -> None:
    optimizer, scheduler = built(SCHEDULES[name])
    twin, steps = built(SCHEDULES[name])
    clock, ticks = 0.0, 0
    for worth in (1.0, 2.7, 0.2, 0.2, 3.9, 1.0, 6.4):
        ticks += tick(scheduler, before=clock, after=clock + worth)
        clock += worth
    for _ in range(15):
        steps.step()
    assert (ticks, math.floor(clock)) == (15, 15)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in twin.param_groups]


def test_one_cycle_is_never_led_past_its_end() -> None:
    optimizer, scheduler = built(lambda o: OneCycleLR(o, max_lr=0.5, total_steps=10))
    assert tick(scheduler, before=0.0, after=8.5) == 8
    assert tick(scheduler, before=8.5, after=13.0) == 1
    assert tick(scheduler, before=13.0, after=14.0) == 0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / 25 / 1e4)
    scheduler.step()  # the user led it past its end, so far torch allows it
    assert tick(scheduler, before=14.0, after=15.0) == 0


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (lambda o: ChainedScheduler([StepLR(o, 3), OneCycleLR(o, max_lr=0.5, total_steps=10)]), 9),
        (
            lambda o: SequentialLR(
                o, [LinearLR(o, total_iters=4), OneCycleLR(o, max_lr=0.5, total_steps=10)], [4]
            ),
            13,
        ),
        (
            lambda o: SequentialLR(
                o, [OneCycleLR(o, max_lr=0.5, total_steps=10), LinearLR(o)], [8]
            ),
            40,
        ),
    ],
)
def test_one_cycle_within_another_scheduler_is_never_led_past_its_end(
    schedule: Schedule, end: int
) -> None:
    optimizer, scheduler = built(schedule)
    twin, steps = built(schedule)
    assert tick(scheduler, before=0.0, after=7.5) == 7
    assert tick(scheduler, before=7.5, after=40.2) == end - 7
    assert tick(scheduler, before=40.2, after=45.0) == 5 * (end == 40)
    for _ in range(end + 5 * (end == 40)):
        steps.step()
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in twin.param_groups]


def test_reduce_on_plateau_follows_a_metric() -> None:
    optimizer, scheduler = built(lambda o: ReduceLROnPlateau(o, patience=0))
    assert [tick(scheduler, before=3.0, after=3.0, metric=m) for m in (1.0, 2.0)] == [1, 1]
    assert rates_of(optimizer) == [pytest.approx(0.01)]


def test_reduce_on_plateau_without_a_metric_is_refused() -> None:
    _, scheduler = built(ReduceLROnPlateau)
    with pytest.raises(ValueError, match=r"control\.advance\(scheduler, metric=validation_loss\)"):
        tick(scheduler, before=0.0, after=9.0)


def test_a_metric_for_a_scheduler_of_the_clock_is_refused() -> None:
    _, scheduler = built(SCHEDULES["StepLR"])
    with pytest.raises(ValueError, match="given for StepLR, but this scheduler is stepped once"):
        tick(scheduler, before=0.0, after=9.0, metric=1.0)


@given(st.lists(st.floats(0.0, 5.0), max_size=12))
def test_ticks_add_up_to_the_whole_steps_of_the_clock(worths: list[float]) -> None:
    _, scheduler = built(SCHEDULES["LambdaLR"])
    clock, ticks = 0.0, 0
    for worth in worths:
        ticks += tick(scheduler, before=clock, after=clock + worth)
        clock += worth
    assert ticks == math.floor(clock + 1e-6)


def test_ten_tenths_are_one_tick() -> None:
    _, scheduler = built(SCHEDULES["LambdaLR"])
    clock, ticks = 0.0, []
    for _ in range(10):
        ticks.append(tick(scheduler, before=clock, after=clock + 0.1))
        clock += 0.1
    assert clock < 1.0
    assert ticks == [0] * 9 + [1]
