"""What measuring adds to a plain loop: no hook on an output after the first step, few gradients."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import largebatch as lb
from largebatch.measure.accumulated import IN_ALL, AccumulatedGradients
from largebatch.measure.forwards import Forwards
from small_runs import class_data, class_loss, classifier

BATCH, PARTS = 12, 3


class Counts:
    """A loop with three micro-batches per step, and how many forward outputs were reached."""

    def __init__(self, door: str, model: nn.Module | None = None) -> None:
        self.model = model or classifier()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.control: Any = (
            lb.watch(self.model, self.optimizer, batch_size=BATCH)
            if door == "watch"
            else lb.attach(
                self.model, self.optimizer, lb.AdaScale(), batch_size=BATCH, base_batch_size=4
            )
        )
        self.reached = self.held = 0

    def step(self, *, prefetch: bool = False) -> None:
        """One step, whose hooks are counted."""
        x, y = class_data(BATCH)
        pairs = list(zip(x.chunk(PARTS), y.chunk(PARTS), strict=True))
        arrived, note = Forwards._arrived, AccumulatedGradients.note

        def arrive(forwards: Forwards, number: int, gradients: Any) -> None:
            self.reached += 1
            arrived(forwards, number, gradients)

        def hold(gradients: AccumulatedGradients) -> None:
            note(gradients)
            self.held = max(self.held, len(gradients._held))

        self.reached = 0
        with (
            mock.patch.object(Forwards, "_arrived", arrive),
            mock.patch.object(AccumulatedGradients, "note", hold),
        ):
            outs = [self.model(x) for x, _ in pairs] if prefetch else None
            for at, (own, target) in enumerate(pairs):
                out = self.model(own) if outs is None else outs[at]
                (cross_entropy(out, target) / PARTS).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def linked(self) -> bool:
        return bool(self.control.observer._step.forwards.linked)


@pytest.mark.parametrize("door", ["attach", "watch"])
def test_a_plain_loop_has_no_hook_on_its_outputs_from_the_second_step_on(door) -> None:
    loop = Counts(door)
    assert loop.linked
    loop.step()
    assert loop.reached == PARTS
    for _ in range(3):
        assert not loop.linked
        loop.step()
        assert loop.reached == 0
    assert loop.held == 3  # of four parameters


@pytest.mark.parametrize("door", ["attach", "watch"])
def test_a_loop_that_is_not_plain_keeps_them_and_gets_them_back(door) -> None:
    loop = Counts(door)
    for _ in range(2):
        loop.step(prefetch=True)
        assert loop.reached == PARTS
        assert loop.linked
    loop.step()
    assert not loop.linked
    loop.step(prefetch=True)  # the number of gradients decides
    assert loop.reached == 0
    assert loop.linked
    loop.step(prefetch=True)
    assert loop.reached == PARTS


@pytest.mark.parametrize("groups", [1, 40])
def test_few_gradients_are_held_whatever_the_model(groups) -> None:
    model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(39)], nn.Linear(5, 3))
    optimizer = torch.optim.SGD(
        [{"params": list(layer.parameters())} for layer in model]
        if groups > 1
        else model.parameters(),
        lr=0.01,
    )
    held = []
    lb.attach(model, optimizer, lb.AdaScale(), batch_size=12, base_batch_size=4)
    note = AccumulatedGradients.note

    def hold(gradients: AccumulatedGradients) -> None:
        note(gradients)
        held.append(len(gradients._held))

    x, y = class_data(12)
    with mock.patch.object(AccumulatedGradients, "note", hold):
        for own, target in zip(x.chunk(3), y.chunk(3), strict=True):
            (class_loss(model, own, target) / 3).backward()
    optimizer.step()
    assert held == [3 if groups == 1 else IN_ALL] * 3
    assert IN_ALL == 24
