"""The training loop of all studies: when it calls what, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import largebatch as lb
from blobs import Batch, blobs, classifier, cross_entropy
from largebatch.core.measurement import Budget
from largebatch.studies.training_loop import train_until


def control_of(model: nn.Module) -> lb.Controller:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = lb.BatchLoader(blobs(), batch_size=16, max_micro_batch_size=8)
    return lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=8)


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def test_train_until_equals_a_loop_written_by_hand() -> None:
    models = [classifier() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = map(control_of, models)
    assert train_until(ours, cross_entropy, Budget(samples=400), clip_norm=0.5) is None
    for batch in theirs.steps(samples=400):
        for micro_batch in batch:
            theirs.backward(cross_entropy(models[1], micro_batch))
        theirs.step(clip_norm=0.5)
    assert ours.finished
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_each_step_calls_the_observers_in_their_order() -> None:
    model = classifier()
    control, calls = control_of(model), []

    def loss(given: nn.Module, batch: Batch) -> Tensor:
        assert given is model
        calls.append("loss")
        return cross_entropy(given, batch)

    @contextmanager
    def around(batch: Any) -> Iterator[None]:
        calls.append("in")
        yield
        calls.append("out")

    before = weights(model)

    def after_backward(batch: Any) -> None:
        assert batch.accumulation == 2
        assert control.measure().moments is not None
        assert torch.equal(weights(model), before)
        calls.append("backward")

    def after_step() -> None:
        assert not torch.equal(weights(model), before)
        calls.append("step")

    def until() -> bool:
        calls.append("until")
        return True

    train_until(
        control,
        loss,
        Budget(steps=3),
        during_backward=around,
        after_backward=after_backward,
        after_step=after_step,
        until=until,
    )
    assert calls == ["in", "loss", "loss", "out", "backward", "step", "until"]


def test_a_stopped_run_continues_with_the_same_bits() -> None:
    models = [classifier() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    straight, stopped = map(control_of, models)
    budget = Budget(steps=10)
    train_until(straight, cross_entropy, budget)
    train_until(stopped, cross_entropy, budget, until=lambda: stopped.optimizer_steps == 4)
    assert stopped.optimizer_steps == 4
    train_until(stopped, cross_entropy, budget)
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_a_run_that_diverges_ends_with_its_error() -> None:
    def infinite(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) * math.inf

    error = train_until(control_of(classifier()), infinite, Budget(steps=10))
    assert isinstance(error, lb.errors.NotFinite)


def test_errors_of_the_loss_pass_through() -> None:
    def wrong(model: nn.Module, batch: Batch) -> Tensor:
        raise KeyError("x")

    with pytest.raises(KeyError):
        train_until(control_of(classifier()), wrong, Budget(steps=10))
