"""What is easily done wrong in a training loop is told before it does damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import largebatch as lb

X, Y = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2


def parts() -> tuple[nn.Module, torch.optim.Optimizer, lb.BatchLoader]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, lb.BatchLoader((X, Y), batch_size=16, max_micro_batch_size=4)


def controller(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, lb.Controller]:
    model, optimizer, batches = parts()
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=4, **options)
    return model, optimizer, control


def drive(
    model: nn.Module, control: lb.Controller, *, between: Callable[[], None] = lambda: None
) -> None:
    for batch in control.steps(steps=2):
        for x, y in batch:
            between()
            control.backward(cross_entropy(model(x), y))
        control.step()


def test_a_gradient_cleared_within_a_step_is_refused_before_a_weight_moves() -> None:
    model, optimizer, control = controller()
    before = model.weight.clone()
    with pytest.raises(lb.errors.MicroBatchMissed, match="cleared between two backward calls"):
        drive(model, control, between=optimizer.zero_grad)
    assert torch.equal(model.weight, before)


def test_an_optimizer_step_left_in_the_loop_is_refused_and_free_again_after_it() -> None:
    model, optimizer, control = controller()
    before = model.weight.clone()
    with pytest.raises(lb.LargeBatchError, match="the weights would move twice"):
        for batch in control.steps(steps=2):
            for x, y in batch:
                control.backward(cross_entropy(model(x), y))
            optimizer.step()
    assert torch.equal(model.weight, before)
    drive(model, control)
    optimizer.step()  # the run is over: the optimizer is the user's own again


def test_a_rate_that_explodes_under_attach_ends_the_loop() -> None:
    model, optimizer, _ = parts()
    control = lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=8, base_batch_size=4, patience=3
    )

    def loop(factor: float) -> None:
        for half in (X[:4], X[4:8]):
            (factor * cross_entropy(model(half), Y[:4])).backward()
        optimizer.step()
        optimizer.zero_grad()

    loop(1.0)
    for _ in range(2):
        loop(float("nan"))
    with pytest.raises(lb.errors.NotFinite, match="3 step"):
        loop(float("nan"))
    assert control.skipped == 3


def test_a_weight_may_be_a_tensor_and_nothing_but_numbers_comes_of_it() -> None:
    record = lb.MemoryRecord()
    model, _, control = controller(record=record)
    for batch in control.steps(steps=1):
        for x, y in batch:
            control.backward(cross_entropy(model(x), y), weight=(y >= 0).sum())
        control.step()
    assert type(control.lr_multiplier) is float
    assert type(record.steps[0].seen.loss) is float


def test_a_micro_batch_of_weight_zero_is_refused_with_the_weight_to_pass() -> None:
    model, _, control = controller()
    with pytest.raises(ValueError, match=r"weight=1e-6"):
        for batch in control.steps(steps=1):
            for x, y in batch:
                control.backward(cross_entropy(model(x), y), weight=0)


@pytest.mark.parametrize("spoil", [lambda loss: loss.item(), lambda loss: loss.detach()])
def test_a_loss_without_its_graph_is_refused(spoil: Callable[[torch.Tensor], Any]) -> None:
    model, _, control = controller()
    with pytest.raises(ValueError, match=r"Do not call loss\.item\(\)"):
        for batch in control.steps(steps=1):
            for x, y in batch:
                control.backward(spoil(cross_entropy(model(x), y)))


def wrong_parts() -> Iterator[tuple[str, Callable[[], object]]]:
    model, optimizer, batches = parts()
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    rule, sizes = lb.AdaScale(), {"batch_size": 16, "base_batch_size": 4}
    lbfgs = torch.optim.LBFGS(model.parameters())
    yield (
        r"lb\.BatchLoader\(loader_or_dataset",
        lambda: lb.Controller(model, optimizer, rule, loader, base_batch_size=4),
    )
    yield (
        r"lb\.JsonlRecord\('run\.jsonl'\)",
        lambda: lb.Controller(
            model, optimizer, rule, batches, base_batch_size=4, record="run.jsonl"
        ),
    )
    yield (
        r"The first two arguments were SGD and Linear",
        lambda: lb.attach(optimizer, model, rule, **sizes),
    )
    yield (
        r"arguments were Linear and the class SGD",
        lambda: lb.attach(model, torch.optim.SGD, rule, **sizes),
    )
    yield "L-BFGS is not supported", lambda: lb.attach(model, lbfgs, rule, **sizes)
    yield "whole number", lambda: lb.BatchLoader((X, Y), batch_size=16.0)
    yield (
        "must be a whole number of samples",
        lambda: lb.watch(model, optimizer, batch_size=0),
    )
    yield "'moments'", lambda: lb.AdaScale(statistic="moment")
    yield "patience", lambda: lb.attach(model, optimizer, rule, patience=0, **sizes)


@pytest.mark.parametrize(("message", "build"), list(wrong_parts()))
def test_parts_of_a_wrong_kind_are_refused_when_they_are_put_together(
    message: str, build: Callable[[], object]
) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_batch_that_is_no_whole_number_is_refused_and_the_old_one_stays() -> None:
    _, _, control = controller()
    with pytest.raises(ValueError, match=r"int\(1\.5 \* control\.batch_size\)"):
        control.resize(1.5 * control.batch_size)
    assert control.batch_size == 16
