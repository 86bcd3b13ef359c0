"""The device and the processes of a run: this one alone, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from largebatch.workbench.workloads import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """This process: its device, and its rank among the processes that share each batch.

    Args:
        device: of model and micro-batches.
        rank: of this process.
        ranks: processes that share each batch.
    """

    device: torch.device
    rank: int = 0
    ranks: int = 1

    @property
    def accelerators(self) -> list[torch.device]:
        """The accelerator of this process, whose random generator a run restores; or none."""
        return [self.device] if self.device.type == "cuda" else []

    @property
    def leader(self) -> bool:
        """Whether this process evaluates, prints and writes."""
        return self.rank == 0

    def moved(self, micro_batch: Batch) -> Batch:
        """Return a micro-batch on this process's device."""
        return tuple(tensor.to(self.device) for tensor in micro_batch)

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return the model as it is trained, in DistributedDataParallel among several processes."""
        if self.ranks == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def alone(command: str) -> Process:
    """Return this process alone, with the first GPU if there is one.

    Raises:
        ValueError: torchrun started several processes.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        raise ValueError(
            f"largebatch {command} runs on one process, and torchrun started {ranks}. Start it "
            f"without: python -m largebatch {command}. Processes share the batches of train and "
            "critical."
        )
    return Process(device=_device(0))


@contextmanager
def process_group() -> Iterator[Process]:
    """Join the processes of torchrun, if it started any; their group ends with the block.

    NCCL where there are GPUs, else gloo. A group that exists already is used and left alone.
    """
    ours = "RANK" in os.environ and not dist.is_initialized()
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if ours:
        _join("nccl" if device.type == "cuda" else "gloo")
    try:
        together = dist.is_initialized()
        yield Process(
            device=device,
            rank=dist.get_rank() if together else 0,
            ranks=dist.get_world_size() if together else 1,
        )
    finally:
        if ours:
            dist.destroy_process_group()


def _join(backend: str) -> None:
    """Makes the process group.

    torchrun keeps one store through its restarts (torch 2.13, pytorch/pytorch#135712): a process
    could read there where another listened before the restart. So each restart has its own keys.
    Its number is known to be the same everywhere on one node only.
    """
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restart == 0 or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend)
        return
    store, rank, ranks = next(rendezvous("env://"))
    own = PrefixStore(f"restart {restart}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=ranks)


def _device(index: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
