"""Sharded models are refused with the true reason, and nothing is left on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import largebatch as lb
from distributed import run_on_ranks

KINDS = ["FSDP2", "HSDP", "FSDP2 in part", "FSDP1", "FSDP1 with own parameters"]


def sharded(kind: str) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    ranks = dist.get_world_size()
    if kind.startswith("FSDP1"):
        mesh = init_device_mesh("cpu", (ranks,))
        own = kind.endswith("parameters")
        cpu = torch.device("cpu")
        return FullyShardedDataParallel(model, device_mesh=mesh, use_orig_params=own, device_id=cpu)
    if kind == "HSDP":
        names = ("replicate", "shard")
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks, 1), mesh_dim_names=names))
    else:
        part = model[1] if kind.endswith("part") else model
        fully_shard(part, mesh=init_device_mesh("cpu", (ranks,)))
    return model


def refusals(kind: str) -> tuple[list[str], list[Any]]:
    model = sharded(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counted = [len(module._forward_pre_hooks) for module in model.modules()]

    def attach() -> Any:
        return lb.attach(model, optimizer, lb.AdaScale(), batch_size=16, base_batch_size=4)

    def control() -> Any:
        batches = lb.BatchLoader(torch.randn(32, 4), batch_size=16)
        return lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=4)

    said = []
    for door in (attach, attach, control, lambda: lb.watch(model, optimizer, batch_size=16)):
        with pytest.raises(ValueError, match="are not supported") as caught:
            door()
        said.append(str(caught.value))
    assert counted == [len(module._forward_pre_hooks) for module in model.modules()]
    left = [
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        optimizer._optimizer_state_dict_pre_hooks,
    ]
    return said, [*map(len, left), "step" in vars(optimizer)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_sharded_model_is_refused_by_name(ranks: int) -> None:
    for kind in KINDS:
        for said, left in run_on_ranks(refusals, ranks, kind):
            assert len(set(said)) == 1
            assert ("FSDP1" if "FSDP1" in kind else "FSDP2") in said[0]
            assert left == [0, 0, 0, False]
