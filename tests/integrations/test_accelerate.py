"""Test that a run with Hugging Face's accelerate equals a plain loop."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

import largebatch as lb
from distributed import run_on_ranks

STEPS, MICRO, PER_STEP = 6, 4, 16
"""Optimizer steps, samples of a micro-batch, and of a step over all ranks."""

Run = tuple[list[float], list[float], int]
"""The gains, the weights at the end and the scheduler's ticks."""


@pytest.fixture(autouse=True)
def _no_state() -> Iterator[None]:
    """accelerate keeps its settings in class attributes."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    samples = STEPS * PER_STEP
    return torch.randn(samples, 5, generator=generator), torch.randn(
        samples, 1, generator=generator
    )


def parts() -> tuple[nn.Module, torch.optim.Optimizer, LRScheduler]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, LambdaLR(optimizer, lambda tick: 0.9**tick)


def attach(model: nn.Module, optimizer: Any, **options: Any) -> lb.Attached:
    rule = lb.AdaScale()
    return lb.attach(model, optimizer, rule, batch_size=PER_STEP, base_batch_size=4, **options)


def plain(*, bf16: bool = False) -> Run:
    """Train the same run in a plain loop on one process."""
    model, optimizer, scheduler = parts()
    control, gains = attach(model, optimizer), []
    x, y = data()
    for at in range(0, len(x), PER_STEP):
        for part in range(at, at + PER_STEP, MICRO):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = mse_loss(model(x[part : part + MICRO]).float(), y[part : part + MICRO])
            (loss / (PER_STEP // MICRO)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        control.advance(scheduler)
        optimizer.zero_grad()
        gains.append(control.gain)
    return gains, weights_of(model), scheduler.last_epoch


def weights_of(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def accelerated(given: str = "prepared", *, mixed_precision: str = "no") -> Run:
    """Train with the loop of accelerate's documentation, on one or several processes."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=PER_STEP // MICRO // ranks,
        mixed_precision=mixed_precision,
    )
    bare, torch_optimizer, torch_scheduler = parts()
    control = attach(bare, torch_optimizer) if given == "before prepare" else None
    loader: Any = DataLoader(TensorDataset(*data()), batch_size=MICRO)
    model, optimizer, loader, scheduler = accelerator.prepare(
        bare, torch_optimizer, loader, torch_scheduler
    )
    if control is None:
        control = attach(model, torch_optimizer if given == "bare" else optimizer)
    gains = []
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(mse_loss(model(x).float(), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            if accelerator.sync_gradients:
                control.advance(torch_scheduler if given == "bare" else scheduler)
                gains.append(control.gain)
            optimizer.zero_grad()
    assert control.optimizer_steps == STEPS
    assert control.samples == STEPS * PER_STEP
    control.close()
    return gains, weights_of(bare), torch_scheduler.last_epoch


def assert_same(one: Run, other: Run, *, rel: float) -> None:
    assert len(one[0]) == STEPS
    assert one[2] > STEPS
    assert one[0] == pytest.approx(other[0], rel=rel)
    assert one[1] == pytest.approx(other[1], rel=rel, abs=rel)
    assert one[2] == other[2]


@pytest.mark.parametrize("given", ["prepared", "bare", "before prepare"])
def test_a_run_under_accelerate_equals_a_plain_loop(given: str) -> None:
    assert_same(accelerated(given), plain(), rel=1e-6)


def test_a_run_in_bfloat16_equals_a_plain_loop_under_autocast() -> None:
    assert_same(accelerated(mixed_precision="bf16"), plain(bf16=True), rel=1e-6)


def on_a_rank(port: int, given: str, mixed_precision: str) -> Run:
    os.environ |= {
        "RANK": str(dist.get_rank()), "LOCAL_RANK": str(dist.get_rank()),
        "WORLD_SIZE": str(dist.get_world_size()), "LOCAL_WORLD_SIZE": str(dist.get_world_size()),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    return accelerated(given, mixed_precision=mixed_precision)


def on_two_ranks(given: str, mixed_precision: str = "no") -> list[Run]:
    with closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return run_on_ranks(on_a_rank, 2, port, given, mixed_precision)


@pytest.mark.parametrize("given", ["prepared", "bare"])
def test_two_processes_equal_a_plain_loop_and_the_scheduler_ticks_once(given: str) -> None:
    for run in on_two_ranks(given):
        assert_same(run, plain(), rel=1e-4)


def test_two_processes_in_bfloat16_equal_a_plain_loop() -> None:
    for run in on_two_ranks("prepared", "bf16"):
        assert_same(run, plain(bf16=True), rel=0.02)


def prepared() -> tuple[Any, Any, Any, torch.optim.Optimizer]:
    model, torch_optimizer, scheduler = parts()
    model, optimizer, scheduler = Accelerator(cpu=True).prepare(model, torch_optimizer, scheduler)
    return model, optimizer, scheduler, torch_optimizer


def test_a_controller_takes_a_prepared_optimizer_and_scheduler() -> None:
    model, optimizer, scheduler, _ = prepared()
    twin, twin_optimizer, twin_scheduler = parts()
    runs = []
    for net, moves, ticks in (
        (model, optimizer, scheduler),
        (twin, twin_optimizer, twin_scheduler),
    ):
        batches = lb.BatchLoader(data(), batch_size=PER_STEP, max_micro_batch_size=MICRO)
        control = lb.Controller(net, moves, lb.AdaScale(), batches, base_batch_size=4)
        for batch in control.steps(steps=3):
            for x, y in batch:
                control.backward(mse_loss(net(x), y))
            control.step()
            control.advance(ticks)
        runs.append((control.base_steps, weights_of(net)))
    assert control.optimizer is twin_optimizer
    assert runs[0] == runs[1]
    assert scheduler.scheduler.last_epoch == twin_scheduler.last_epoch > 3


def test_watch_takes_a_prepared_optimizer() -> None:
    model, optimizer, *_ = prepared()
    noise = lb.watch(model, optimizer, batch_size=8)
    x, y = data()
    for _ in range(2):
        for part in (0, 4):
            (mse_loss(model(x[part : part + 4]), y[part : part + 4]) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(noise.series) == 2


def test_a_prepared_optimizer_and_its_bare_one_have_one_control() -> None:
    model, optimizer, _, torch_optimizer = prepared()
    with attach(model, optimizer), pytest.raises(ValueError, match="already"):
        attach(model, torch_optimizer)
    with attach(model, torch_optimizer), pytest.raises(ValueError, match="already"):
        attach(model, optimizer)


def test_a_prepared_optimizer_whose_step_raises_shows_the_users_rate() -> None:
    model, optimizer, _, torch_optimizer = prepared()
    attach(model, optimizer)

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    torch_optimizer.register_step_post_hook(broken)
    x, y = data()
    for part in range(0, PER_STEP, MICRO):
        (mse_loss(model(x[part : part + MICRO]), y[part : part + MICRO]) / 4).backward()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.05
