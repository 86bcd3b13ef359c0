"""Single examples on two processes: the sums of all of them, and nothing more sent for it."""

from __future__ import annotations

import copy
import traceback

import pytest
import torch
import torch.distributed as dist
from test_example_meter import agree, meter, rows_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.rules import Observe
from small_runs import class_data, class_loss, measuring_controller

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def run_all() -> dict[str, str]:
    failures = {}
    for name, function in CHECKS.items():
        torch.manual_seed(0)
        try:
            function(dist.get_rank())
        except Exception:
            failures[name] = traceback.format_exc()
        dist.barrier()
    return failures


@pytest.fixture(scope="module")
def failures() -> list[dict[str, str]]:
    return run_on_ranks(run_all, 2)


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Linear(5, 7), nn.Unflatten(1, (7, 1)), nn.Conv1d(7, 4, 1), nn.Flatten()
    return nn.Sequential(*layers, nn.LayerNorm(4), nn.Linear(4, 3))


@check
def a_controller_over_two_ranks_and_unequal_micro_batches(rank):
    for micro in (10, 6):
        bare = network()
        model = DistributedDataParallel(bare, bucket_cap_mb=0.0001)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        control, seen = measuring_controller(
            model,
            optimizer,
            micro=micro,
            ask=("moments", "inner_product_variance"),
            meter=meter(model),
        )
        x, y = class_data()
        for step, batch in enumerate(control.steps(steps=3)):
            rows = rows_of(copy.deepcopy(bare), x[20 * step :][:20], y[20 * step :][:20])
            for few, labels in batch:
                control.backward(class_loss(model, few, labels))
            reading = control.measure()
            control.step()
            agree(reading, rows, rel=2e-4)
        assert len(seen.steps) == (3 if rank == 0 else 0)


@check
def attach_with_one_backward_a_step_on_each_rank(rank):
    bare = network()
    model = DistributedDataParallel(bare)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    record = lb.MemoryRecord()
    control = lb.attach(
        model,
        optimizer,
        Observe(statistics=("moments", "inner_product_variance")),
        batch_size=20,
        base_batch_size=5,
        meter=meter(model),
        record=record,
    )
    x, y = class_data()
    for at in (0, 20):
        rows = rows_of(copy.deepcopy(bare), x[at : at + 20], y[at : at + 20])
        mine = slice(at + 10 * rank, at + 10 * rank + 10)
        class_loss(model, x[mine], y[mine]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            agree(record.steps[-1][0], rows, rel=2e-4)
    control.close()


@check
def both_ranks_decide_alike(rank):
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control = lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=20, base_batch_size=5, meter=meter(model)
    )
    x, y = class_data()
    for at in (0, 20, 40):
        mine = slice(at + 10 * rank, at + 10 * rank + 10)
        class_loss(model, x[mine], y[mine]).backward()
        optimizer.step()
        optimizer.zero_grad()
    multipliers = [None, None]
    dist.all_gather_object(multipliers, control.lr_multiplier)
    assert multipliers[0] == multipliers[1]
    assert 1.0 <= multipliers[0] <= 4.0


@pytest.mark.distributed
@pytest.mark.parametrize("name", CHECKS)
def test_every_single_example_case_passes_on_two_processes(name, failures):
    found = [of_rank[name] for of_rank in failures if name in of_rank]
    assert not found, "\n".join(found)
