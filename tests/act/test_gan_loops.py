"""A GAN's discriminator under attach: the generator's backward leaves gradients on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import largebatch as lb
from largebatch.act.attached import Attached


def nothing(control: Any) -> None:
    """What a loop without a remedy calls."""


def gains(
    *,
    frozen: bool = False,
    after_critic: Callable[[Any], Any] = nothing,
    after_generator: Callable[[Any], Any] = nothing,
    steps: int = 12,
) -> list[float]:
    """The gain of each step of the discriminator, which has two micro-batches."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    generator = nn.Linear(2, 3)
    first = torch.optim.SGD(critic.parameters(), lr=0.01)
    second = torch.optim.SGD(generator.parameters(), lr=0.0)
    control = lb.attach(critic, first, lb.AdaScale(), batch_size=64, base_batch_size=16)
    found = []
    for _ in range(steps):
        first.zero_grad()
        for _ in range(2):
            (critic(torch.randn(32, 3) + 1).square().mean() / 2).backward()
        before = [p.detach().clone() for p in critic.parameters()]
        try:
            first.step()
        except lb.LargeBatchError:
            assert all(map(torch.equal, before, critic.parameters()))
            raise
        found.append(control.lr_multiplier)
        after_critic(control)
        second.zero_grad()
        with without_gradients(critic) if frozen else nullcontext():
            (-critic(generator(torch.randn(32, 2))).mean()).backward()
        second.step()
        after_generator(control)
    return found


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    model.requires_grad_(False)
    yield
    model.requires_grad_(True)


@pytest.mark.parametrize("call", [Attached.advance, Attached.drop])
def test_a_call_after_the_generators_backward_leaves_its_gradients_out(call) -> None:
    expected = gains(frozen=True)
    assert max(expected) > 1.01
    assert gains(after_generator=call) == pytest.approx(expected, rel=1e-6)
    both = gains(after_generator=call, after_critic=lambda control: control.advance())
    assert both == pytest.approx(expected, rel=1e-6)


def test_without_it_the_second_step_is_refused_before_a_weight_moves() -> None:
    with pytest.raises(lb.errors.MicroBatchMissed, match=r"control\.drop\(\)"):
        gains()
    assert len(gains(steps=1)) == 1
