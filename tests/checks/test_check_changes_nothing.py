"""A check leaves every bit of a run as it was, also when the loss raises in the middle of it."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from runs_with_faults import SAMPLES
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader, Dataset, TensorDataset

import largebatch as lb
from largebatch.checks.finding import CheckUp
from small_runs import class_data, classifier, mean_loss


class Busy(nn.Module):
    """Buffers that each forward changes, in place and by a new tensor, and one block that is in
    evaluation mode while the others train."""

    def __init__(self) -> None:
        super().__init__()
        self.body = classifier(nn.BatchNorm1d(7), nn.Dropout(0.2))
        self.still = nn.BatchNorm1d(5).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1.0
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        out: Tensor = self.body(self.still(x))
        return out


class Run:
    """A run in its third step, and everything that a check must not change."""

    def __init__(self, source: str) -> None:
        self.model = Busy()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scaler = GradScaler("cpu", init_scale=8.0, growth_interval=3)
        self.own = torch.Generator().manual_seed(5)
        x, y = class_data(SAMPLES)
        loader: Any = (x, y)
        if source == "loader":
            loader = DataLoader(
                TensorDataset(x, y), batch_size=16, shuffle=True, generator=self.own
            )
        batches = (
            lb.BatchLoader(loader, batch_size=32)
            if source == "loader"
            else lb.BatchLoader(loader, batch_size=32, max_micro_batch_size=16)
        )
        self.control = lb.Controller(
            self.model,
            self.optimizer,
            lb.AdaScale(),
            batches,
            base_batch_size=16,
            scaler=self.scaler,
        )

    def train(self, steps: int) -> None:
        for batch in self.control.steps(steps=12):
            for micro_batch in batch:
                self.control.backward(mean_loss(self.model, micro_batch))
            self.control.step()
            if self.control.optimizer_steps >= steps:
                break

    def state(self) -> list[Any]:
        return copy.deepcopy(
            [
                self.model.state_dict(),
                [parameter.grad for parameter in self.model.parameters()],
                [(name, module.training) for name, module in self.model.named_modules()],
                [parameter.requires_grad for parameter in self.model.parameters()],
                self.optimizer.state_dict(),
                self.scaler.state_dict(),
                self.control.state_dict(),
                self.control.batches.position,
                random.getstate(),
                np.random.get_state(),
                torch.get_rng_state(),
                self.own.get_state(),
            ]
        )


def same(a: Any, b: Any) -> bool:
    """Bit by bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


class Failing:
    """A loss that draws from every generator and raises in one of its calls."""

    def __init__(self, call: int | None) -> None:
        self.call, self.calls = call, 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        random.random(), np.random.random(), torch.rand(3)
        if self.calls == self.call:
            raise RuntimeError("in the middle")
        return mean_loss(model, batch)


def meddling(model: nn.Module, batch: Any) -> Tensor:
    """A loss that also runs the backward, moves weights and changes the model's mode."""
    mean_loss(model, batch).backward()
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)
    model.eval()
    return mean_loss(model, batch)


def checked(run: Run, loss: Any) -> CheckUp:
    return lb.check(run.control, loss, seconds=0.02)


@pytest.mark.parametrize("source", ["tensors", "loader"])
@pytest.mark.parametrize("call", [None, 1, 2, 4, 7, 9, 14])
def test_a_check_changes_no_bit_of_the_run(call: int | None, source: str) -> None:
    run = Run(source)
    run.train(3)
    for parameter in run.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradients = [parameter.grad for parameter in run.model.parameters()]
    before = run.state()
    found = checked(run, Failing(call))
    assert same(run.state(), before)
    assert all(p.grad is g for p, g in zip(run.model.parameters(), gradients, strict=True))
    assert ("in the middle" in str(found)) == (call is not None)
    assert ("timed twice" in str(found)) == (call is None)


@pytest.mark.parametrize("source", ["tensors", "loader"])
def test_a_check_changes_no_bit_of_the_run_even_if_the_loss_changes_the_model(source: str) -> None:
    run = Run(source)
    run.train(3)
    before = run.state()
    checked(run, meddling)
    assert same(run.state(), before)


def test_the_comparison_sees_each_difference() -> None:
    run = Run("tensors")
    run.train(3)
    before = run.state()
    assert same(before, run.state())
    assert not same(torch.zeros(2), torch.tensor([0.0, 1e-9]))
    random.random()
    assert not same(before, run.state())


def test_ctrl_c_in_a_check_is_passed_on_and_leaves_every_bit() -> None:
    def interrupted(model: nn.Module, batch: Any) -> Tensor:
        mean_loss(model, batch).backward()
        raise KeyboardInterrupt

    run = Run("tensors")
    run.train(3)
    before = run.state()
    with pytest.raises(KeyboardInterrupt):
        lb.check(run.control, interrupted)
    assert same(run.state(), before)


@pytest.mark.parametrize("source", ["tensors", "loader"])
def test_a_checked_run_continues_with_the_same_bits_as_a_run_without_a_check(source: str) -> None:
    ends = []
    for look in (False, True):
        torch.manual_seed(1)
        run = Run(source)
        if look:
            checked(run, Failing(None))
        run.train(3)
        if look:
            checked(run, Failing(None))
        run.train(6)
        ends.append(run.state())
    assert same(*ends)


def test_an_attached_run_checked_in_the_middle_of_a_step_continues_with_the_same_bits() -> None:
    ends = []
    for look in (False, True):
        torch.manual_seed(1)
        model = Busy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, y = class_data(SAMPLES)
        control = lb.attach(
            model, optimizer, lb.AdaScale(), batch_size=32, base_batch_size=16, micro_batches=2
        )
        for step in range(3):
            for part in range(2):
                rows = slice(32 * step + 16 * part, 32 * step + 16 * part + 16)
                mean_loss(model, (x[rows], y[rows])).backward()
                if look:
                    lb.check(control, mean_loss, (x[:16], y[:16]), seconds=0.02)
            optimizer.step()
            optimizer.zero_grad()
        ends.append([model.state_dict(), optimizer.state_dict(), control.state_dict()])
        control.close()
    assert same(*ends)


def test_after_a_check_loader_workers_continue_with_the_same_samples() -> None:
    x, y = class_data(64)
    items = list(zip(x, y, strict=True))
    taken = []
    for look in (False, True):
        model = classifier()
        loader = lb.BatchLoader(items, batch_size=16, max_micro_batch_size=8, num_workers=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        control = lb.Controller(model, optimizer, lb.AdaScale(), loader, base_batch_size=8)
        seen = []
        for batch in control.steps(steps=3):
            for micro_batch in batch:
                seen.append(micro_batch[0].clone())
                control.backward(mean_loss(model, micro_batch))
            control.step()
            if look:
                lb.check(control, mean_loss, seconds=0.0)
        taken.append(seen)
    assert same(*taken)


class Drawing(Dataset[Any]):
    """Samples that are drawn from the global generators."""

    def __init__(self) -> None:
        self.x, self.y = class_data(64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        noise = 0.1 * torch.randn(5) + 0.1 * random.random() + 0.1 * np.random.random()
        return self.x[index] + noise, self.y[index]


def test_after_a_check_samples_continue_with_the_same_draws_of_the_global_generators() -> None:
    taken = []
    for look in (False, True):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        model = classifier()
        loader = lb.BatchLoader(
            Drawing(), batch_size=16, max_micro_batch_size=8, seed_samples=False
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        control = lb.Controller(model, optimizer, lb.AdaScale(), loader, base_batch_size=8)
        seen = []
        for batch in control.steps(steps=3):
            for micro_batch in batch:
                seen.append(micro_batch[0].clone())
                control.backward(mean_loss(model, micro_batch))
            control.step()
            if look:
                lb.check(control, mean_loss, seconds=0.0)
        taken.append(seen)
    assert same(*taken)
