"""Each step has one record line; its loss is the mean over the batch as it enters the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import largebatch as lb

X, Y = (torch.randn(70, n, generator=torch.Generator().manual_seed(n)) for n in (3, 1))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y)


def fresh(lr: float = 0.1) -> tuple[nn.Module, torch.optim.Optimizer, lb.MemoryRecord]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=lr), lb.MemoryRecord()


@pytest.mark.parametrize(("size", "scaled"), [(1, False), (16, False), (33, False), (16, True)])
def test_under_the_controller(size, scaled) -> None:
    model, optimizer, record = fresh()
    control = lb.Controller(
        model,
        optimizer,
        lb.AdaScale(),
        lb.BatchLoader((X, Y), batch_size=70, max_micro_batch_size=size, shuffle=False),
        base_batch_size=35,
        record=record,
        scaler=torch.amp.GradScaler("cpu", init_scale=128.0) if scaled else None,
    )
    expected = []
    for batch in control.steps(steps=3):
        expected.append(loss_of(model, X, Y).item())
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        control.step()
    assert [seen.loss for seen, _ in record.steps] == pytest.approx(expected, abs=1e-6)


def attached_losses(
    cuts: Sequence[slice],
    *,
    told: Callable[[Any, int, int], None],
    share: Callable[[int, int], float],
) -> list[float]:
    """The losses that a loop under attach has recorded; `share` is of a part in the step."""
    model, optimizer, record = fresh(lr=0.0)
    total = cuts[-1].stop
    control = lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=total, base_batch_size=16, record=record
    )
    for _ in range(3):
        for cut in cuts:
            loss = loss_of(model, X[cut], Y[cut])
            size = cut.stop - cut.start
            control.loss(loss)
            told(control, size, cut.stop)
            (loss * share(size, total)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [seen.loss for seen, _ in record.steps]


EQUAL = [slice(at, at + 16) for at in range(0, 64, 16)]
UNEQUAL = [slice(0, 10), slice(10, 30), slice(30, 60)]


def true_loss(weights: Sequence[float], cuts: Sequence[slice]) -> float:
    model, *_ = fresh()
    losses = [loss_of(model, X[cut], Y[cut]).item() for cut in cuts]
    pairs = zip(weights, losses, strict=True)
    return sum(w * loss for w, loss in pairs) / sum(weights)


def test_equal_parts_under_attach() -> None:
    found = attached_losses(EQUAL, told=lambda *_: None, share=lambda n, total: 1 / 4)
    assert found == pytest.approx([true_loss([1] * 4, EQUAL)] * 3, abs=1e-6)
    assert found[0] == pytest.approx(loss_of(fresh()[0], X[:64], Y[:64]).item(), abs=1e-6)


def test_parts_weighted_by_their_samples_under_attach() -> None:
    found = attached_losses(
        UNEQUAL,
        told=lambda control, n, _: control.micro_batch(n, weight=n),
        share=lambda n, total: n / total,
    )
    assert found == pytest.approx([true_loss([10, 20, 30], UNEQUAL)] * 3, abs=1e-6)
    assert found[0] == pytest.approx(loss_of(fresh()[0], X[:60], Y[:60]).item(), abs=1e-6)


def test_parts_weighted_by_their_tokens_under_attach() -> None:
    found = attached_losses(
        UNEQUAL,
        told=lambda control, n, stop: control.micro_batch(n, weight=stop**2),
        share=lambda n, total: 1 / 3,  # what the loss enters is not seen by the record
    )
    assert found == pytest.approx([true_loss([100, 900, 3600], UNEQUAL)] * 3, abs=1e-6)


def test_a_loss_that_was_told_for_some_parts_only_is_refused() -> None:
    model, optimizer, _ = fresh()
    control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=60, base_batch_size=16)
    for at, cut in enumerate(UNEQUAL):
        loss = loss_of(model, X[cut], Y[cut])
        if at:
            control.loss(loss)
        control.micro_batch(cut.stop - cut.start, weight=1)
        (loss / 3).backward()
    with pytest.raises(lb.errors.MicroBatchMissed, match="called 2 times in a step of 3"):
        optimizer.step()
