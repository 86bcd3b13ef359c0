"""Multiples of base steps that were passed, for loops that test `iteration % k == 0`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, takewhile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import largebatch as lb
from largebatch.act.attached import Attached
from largebatch.act.ticks import Ticks
from small_runs import class_data, class_loss, classifier

EVERY = (1, 2, 3, 10, 2.5)


def naive(every: float, before: float, after: float) -> list[float]:
    """Each multiple is looked at on its own."""
    passed = takewhile(lambda tick: tick <= after + 1e-6, (k * every for k in count(1)))
    return [tick for tick in passed if tick > before + 1e-6]


def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = classifier()
    return model, torch.optim.SGD(model.parameters(), lr=0.02)


def attached() -> tuple[torch.nn.Module, torch.optim.Optimizer, Attached]:
    model, optimizer = parts()
    return (
        model,
        optimizer,
        lb.attach(model, optimizer, lb.AdaScale(), batch_size=60, base_batch_size=4),
    )


def attached_steps(steps: int, *, state: dict | None = None) -> Iterator[Attached]:
    """The control after each step of a user's own loop, whose gain is up to 15."""
    model, optimizer, control = attached()
    if state is not None:
        control.load_state_dict(state)
    x, y = class_data()
    for _ in range(steps):
        for at in range(0, 60, 10):
            (class_loss(model, x[at : at + 10], y[at : at + 10]) / 6).backward()
        optimizer.step()
        optimizer.zero_grad()
        control.advance()
        yield control


def controller(*, state: dict | None = None) -> lb.Controller:
    model, optimizer = parts()
    batches = lb.BatchLoader(class_data(), batch_size=60, max_micro_batch_size=10)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=4)
    if state is not None:
        control.load_state_dict(state)
    return control


def controlled_steps(steps: int, *, state: dict | None = None) -> Iterator[lb.Controller]:
    """The control after each step of its own loop."""
    control = controller(state=state)
    for batch in control.steps(base_steps=1e6):
        for x, y in batch:
            control.backward(class_loss(control.model, x, y))
        control.step()
        yield control
        steps -= 1
        if steps == 0:
            return


LOOPS = pytest.mark.parametrize("loop", [attached_steps, controlled_steps])


@LOOPS
def test_each_multiple_comes_once_though_the_gain_is_above_the_interval(loop) -> None:
    ticked: dict[float, list[float]] = {every: [] for every in EVERY}
    before, gains = 0.0, []
    for control in loop(8):
        for every in EVERY:
            new = control.ticks(every=every)
            assert new == naive(every, before, control.base_steps)
            ticked[every] += new
        gains.append(control.base_steps - before)
        before = control.base_steps
    assert max(gains) > 2.5  # else no interval was jumped over
    assert any(gain % 1 for gain in gains)
    for every, ticks in ticked.items():
        assert ticks == [k * every for k in range(1, math.floor(before / every + 1e-6) + 1)]
        assert all(isinstance(tick, type(every)) for tick in ticks)
    assert len(ticked[1]) > 8


@LOOPS
def test_a_call_after_several_steps_gives_all_of_them_and_a_second_call_none(loop) -> None:
    *_, control = loop(5)
    assert control.ticks(every=2) == naive(2, 0.0, control.base_steps)
    assert control.ticks(every=2) == []
    assert control.ticks(every=4) == naive(4, 0.0, control.base_steps)


@LOOPS
def test_before_the_first_step_nothing_has_passed(loop) -> None:
    control = controller() if loop is controlled_steps else attached()[2]
    assert control.ticks(every=0.001) == []


@LOOPS
def test_a_resumed_run_ticks_where_the_saved_one_stopped(loop) -> None:
    *_, control = loop(4)
    state, at = control.state_dict(), control.base_steps
    resumed = loop(4, state=state)
    control = next(resumed)
    assert control.base_steps > at + 1.0
    assert control.ticks(every=1) == naive(1, at, control.base_steps)
    control = next(resumed)
    assert control.ticks(every=2) == naive(2, at, control.base_steps)


def test_loading_a_state_forgets_what_this_run_was_asked_for() -> None:
    *_, control = attached_steps(6)
    state, at = control.state_dict(), control.base_steps
    _, _, control = attached()
    assert control.ticks(every=1) == []
    control.load_state_dict(state)
    assert at > 2.0
    assert control.ticks(every=1) == []


@LOOPS
@pytest.mark.parametrize("every", [0, -1, -2.5, math.nan, math.inf])
def test_an_interval_that_is_not_above_zero_is_refused(loop, every) -> None:
    control = controller() if loop is controlled_steps else attached()[2]
    with pytest.raises(ValueError, match=r"above 0. .*control\.ticks\(every=10\)"):
        control.ticks(every=every)


def test_ten_steps_worth_a_tenth_each_pass_one_base_step() -> None:
    ticks, clock, found = Ticks(start=0.0), 0.0, []
    for _ in range(10):
        clock += 0.1
        found += ticks.passed(1, now=clock)
    assert clock < 1.0
    assert found == [1]


@given(
    st.floats(0.0, 50.0),
    st.lists(st.floats(0.0, 40.0), max_size=12),
    st.sampled_from([1, 2, 3, 10, 2.5, 0.7]),
)
def test_calls_at_any_time_give_what_one_call_at_the_end_gives(start, gains, every) -> None:
    ticks, clock, found = Ticks(start=start), start, []
    for gain in gains:
        clock += gain
        found += ticks.passed(every, now=clock)
    assert found == Ticks(start=start).passed(every, now=clock)
    assert len(set(found)) == len(found)
