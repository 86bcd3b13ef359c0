"""Passes that do not come to their step: advance, drop, a backward that failed, a scaler's skip."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import largebatch as lb
from largebatch.core.errors import LargeBatchError, MicroBatchMissed
from small_runs import class_data, class_loss, classifier, weights

PARTS, SIZE = 4, 5


class Failing(torch.autograd.Function):
    """The identity, whose backward raises while `errors` has one left."""

    errors: list[Exception] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if Failing.errors:
            raise Failing.errors.pop()
        return gradient


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Failing.apply(torch.tanh(self.body(x))))


class Loop:
    """A user's loop, with `lb.attach` or `lb.watch`, or without either."""

    def __init__(
        self, door: str = "attach", *, model: nn.Module | None = None, **more: Any
    ) -> None:
        torch.manual_seed(0)
        self.model = model or classifier()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.control: Any = None
        if door == "attach":
            rule = lb.Observe(statistics=("moments",))
            self.control = lb.attach(
                self.model, self.optimizer, rule, batch_size=20, base_batch_size=10, **more
            )
        elif door == "watch":
            self.control = lb.watch(self.model, self.optimizer, batch_size=20, **more)

    def accumulate(self, step: int = 0, *, parts: int = PARTS, factor: float = 1.0) -> None:
        x, y = class_data()
        for at in range(20 * step, 20 * step + parts * SIZE, SIZE):
            loss = class_loss(self.model, x[at : at + SIZE], y[at : at + SIZE])
            (factor * loss / PARTS).backward()

    def finish(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def moments(self) -> Any:
        return self.control._seen.moments


def undisturbed(step: int = 0) -> Any:
    loop = Loop()
    loop.accumulate(step)
    loop.finish()
    return loop.moments()


@pytest.mark.parametrize("parts", range(PARTS + 1))
def test_advance_at_any_time_drops_what_is_open(parts) -> None:
    loop = Loop()
    loop.accumulate(parts=parts)
    assert loop.control.advance() == 0
    loop.optimizer.zero_grad()
    loop.accumulate(1)
    loop.finish()
    assert loop.moments() == undisturbed(1)
    assert (loop.control.optimizer_steps, loop.control.samples) == (1, 20)


@pytest.mark.parametrize("call", ["advance", "drop"])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_gradients_that_are_dropped_but_stay_are_refused_by_name(call, parts) -> None:
    loop = Loop()
    before = weights(loop.model)
    loop.accumulate(parts=parts)
    getattr(loop.control, call)()
    loop.accumulate(1, parts=PARTS - parts)
    with pytest.raises(
        MicroBatchMissed, match=rf"control\.{call}\(\) dropped the earlier backward calls"
    ):
        loop.optimizer.step()
    assert all(map(torch.equal, before, weights(loop.model)))


@pytest.mark.parametrize("call", ["advance", "drop"])
def test_a_step_after_all_its_backward_calls_were_dropped_names_the_call(call) -> None:
    loop = Loop()
    loop.accumulate()
    getattr(loop.control, call)()
    with pytest.raises(
        MicroBatchMissed, match=rf"control\.{call}\(\) dropped all earlier backward calls"
    ):
        loop.optimizer.step()


def test_advance_in_every_micro_batch_as_a_trainers_loop_does_is_refused_by_name() -> None:
    loop = Loop()
    scheduler = LambdaLR(loop.optimizer, lambda at: 1.0)
    for _ in range(PARTS):
        loop.accumulate(parts=1)
        loop.control.advance(scheduler)
    with pytest.raises(MicroBatchMissed, match=r"control\.advance\(\)"):
        loop.optimizer.step()


def test_advance_twice_ticks_once_and_drops_nothing() -> None:
    loop = Loop()
    scheduler = LambdaLR(loop.optimizer, lambda at: 1.0)
    for step in range(2):
        loop.accumulate(step)
        loop.finish()
        assert loop.control.advance(scheduler) == 2
        assert loop.control.advance(scheduler) == 0
    assert loop.control.optimizer_steps == 2


@pytest.mark.parametrize("door", ["attach", "watch"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), RuntimeError("a cuDNN error"), ValueError("x")]
)
@pytest.mark.parametrize("parts", [0, 2])
def test_a_backward_that_raised_is_retried_after_drop_and_zero_grad(door, error, parts) -> None:
    bare, loop = Loop("", model=Net()), Loop(door, model=Net())
    loop.model.load_state_dict(bare.model.state_dict())
    bare.accumulate()
    bare.finish()
    loop.accumulate(parts=parts)
    Failing.errors.append(error)
    with pytest.raises(type(error), match=str(error)):
        loop.accumulate()
    loop.control.drop()
    loop.optimizer.zero_grad()
    loop.accumulate()
    loop.finish()
    assert all(map(torch.equal, weights(bare.model), weights(loop.model)))
    if door == "attach":
        assert loop.control.optimizer_steps == 1
        assert loop.moments().parts == PARTS
    else:
        assert (len(loop.control.series), loop.control.dropped) == (1, 0)


def test_a_backward_that_raised_in_a_block_is_retried_in_a_new_one() -> None:
    loop = Loop(model=Net())
    x, y = class_data()
    for at in range(0, 20, SIZE):
        if at == 10:
            Failing.errors.append(torch.OutOfMemoryError("no memory"))
            with pytest.raises(torch.OutOfMemoryError), loop.control.part():
                class_loss(loop.model, x[at : at + SIZE], y[at : at + SIZE]).backward()
            loop.optimizer.zero_grad()
            break
        with loop.control.part():
            class_loss(loop.model, x[at : at + SIZE], y[at : at + SIZE]).backward()
    for at in range(0, 20, SIZE):
        with loop.control.part():
            class_loss(loop.model, x[at : at + SIZE], y[at : at + SIZE]).backward()
    loop.finish()
    assert loop.moments().parts == PARTS


def test_a_backward_that_raised_and_was_not_dropped_is_refused_with_a_remedy() -> None:
    loop = Loop(model=Net())
    Failing.errors.append(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        loop.accumulate()
    loop.optimizer.zero_grad()
    loop.accumulate()
    with pytest.raises(LargeBatchError, match=r"raised an exception.*optimizer\.zero_grad\(\)"):
        loop.optimizer.step()
    loop.optimizer.zero_grad()
    loop.accumulate()
    loop.finish()
    assert loop.control.optimizer_steps == 1


@pytest.mark.parametrize("every", [2, 3])
def test_a_scalers_skip_is_one_skipped_step_and_the_next_is_measured(every) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    loop = Loop(scaler=scaler)
    moved = []
    for step in range(6):
        before = weights(loop.model)
        loop.accumulate(step % 3, factor=float(scaler.get_scale()))
        if step % every == every - 1:
            next(loop.model.parameters()).grad.view(-1)[0] = torch.inf
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
        loop.control.advance()
        moved.append(not all(map(torch.equal, before, weights(loop.model))))
    skips = 6 // every
    assert moved == [step % every != every - 1 for step in range(6)]
    assert (loop.control.skipped, loop.control.optimizer_steps) == (skips, 6 - skips)
    assert loop.control.samples == 120


def test_dropping_an_empty_pass_changes_nothing() -> None:
    loop = Loop()
    for _ in range(3):
        loop.control.drop()
    loop.accumulate(1)
    loop.finish()
    assert loop.moments() == undisturbed(1)


@pytest.mark.parametrize("when", ["before the loss", "before the backward"])
def test_a_forward_whose_loss_is_thrown_away_needs_no_drop(when) -> None:
    loop = Loop()
    x, _ = class_data()
    thrown = loop.model(x[:SIZE])
    if when == "before the backward":
        thrown = thrown.sum()
    loop.accumulate()
    loop.finish()
    assert loop.moments() == undisturbed()


def test_a_copy_of_the_model_does_not_count_in_the_step() -> None:
    loop = Loop()
    loop.accumulate(parts=2)
    other = copy.deepcopy(loop.model)
    class_loss(other, *class_data()).backward()
    x, y = class_data()
    for at in (10, 15):
        (class_loss(loop.model, x[at : at + SIZE], y[at : at + SIZE]) / PARTS).backward()
    loop.finish()
    assert loop.moments() == undisturbed()
