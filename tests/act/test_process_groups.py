"""Runs on a part of the processes, and the modes of DistributedDataParallel that change a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def data(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(128, 3, generator=generator), torch.randn(128, 1, generator=generator)


def trained(
    model: nn.Module, door: str, *, seed: int, rank: int, ranks: int, **options: Any
) -> tuple[list[float], int, int]:
    """The gains, the samples and the ranks of a run of four steps of 16 samples."""
    x, y = data(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rule = lb.AdaScale()
    gains = []
    if door == "attach":
        control: Any = lb.attach(
            model, optimizer, rule, batch_size=16, base_batch_size=4, **options
        )
        for at in range(0, 64, 16):
            for part in torch.arange(at, at + 16).chunk(4)[rank::ranks]:
                (mse_loss(model(x[part]), y[part]) * ranks / 4).backward()
            optimizer.step()
            optimizer.zero_grad()
            gains.append(control.gain)
    else:
        batches = lb.BatchLoader((x, y), batch_size=16, max_micro_batch_size=4, shuffle=False)
        control = lb.Controller(model, optimizer, rule, batches, base_batch_size=4, **options)
        for batch in control.steps(steps=4):
            for a, b in batch:
                control.backward(mse_loss(model(a), b))
            gains.append(control.step().base_steps)
    return gains, control.samples, control.decider.ranks


def in_a_group(door: str) -> tuple[list[float], int, int]:
    rank = dist.get_rank()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine = rank // 2
    model = DistributedDataParallel(net(mine), process_group=groups[mine])
    return trained(model, door, seed=mine, rank=rank % 2, ranks=2)


@pytest.mark.parametrize("door", ["attach", "controller"])
def test_each_of_two_groups_runs_as_if_it_were_alone(door: str) -> None:
    everyone = run_on_ranks(in_a_group, 4, door)
    for rank, (gains, samples, ranks) in enumerate(everyone):
        alone, *_ = trained(net(rank // 2), door, seed=rank // 2, rank=0, ranks=1)
        assert gains == pytest.approx(alone, rel=1e-5)
        assert (samples, ranks) == (64, 2)
    assert everyone[0][0] != everyone[2][0]


def on_a_part_of_the_world(door: str) -> tuple[list[float], int, int] | None:
    group = dist.new_group([1, 2])
    if dist.get_rank() == 0:
        return None
    model = DistributedDataParallel(net(0), process_group=group)
    rank = dist.get_rank(group)
    return trained(model, door, seed=0, rank=rank, ranks=2)


def test_processes_outside_of_the_group_are_not_waited_for() -> None:
    nobody, *everyone = run_on_ranks(on_a_part_of_the_world, 3, "attach")
    assert nobody is None
    alone, *_ = trained(net(0), "attach", seed=0, rank=0, ranks=1)
    for gains, *_ in everyone:
        assert gains == pytest.approx(alone, rel=1e-5)


def in_a_join(door: str) -> None:
    model = DistributedDataParallel(net(0))
    before = [p.detach().clone() for p in model.parameters()]
    rank = dist.get_rank()
    try:
        with model.join():
            with pytest.raises(lb.LargeBatchError, match=r"is inside model\.join\(\)"):
                trained(model, door, seed=0, rank=rank, ranks=2)
            raise InterruptedError  # else the context waits for the other ranks
    except InterruptedError:
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("door", ["attach", "controller"])
def test_a_join_context_is_refused_before_a_weight_moves(door: str) -> None:
    run_on_ranks(in_a_join, 2, door)


def static(static_graph: bool) -> tuple[list[float], int, int]:
    model = DistributedDataParallel(net(0), static_graph=static_graph)
    return trained(model, "attach", seed=0, rank=dist.get_rank(), ranks=2)


def test_a_static_graph_is_measured_right_under_attach() -> None:
    assert run_on_ranks(static, 2, True) == run_on_ranks(static, 2, False)
