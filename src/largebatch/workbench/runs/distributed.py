"""Choose the device of a run and join the processes that torchrun started."""

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
    """Describe this process: its device, and its rank among the processes that share each batch.

    Args:
        device: Device of the model and of the micro-batches.
        rank: Rank of this process, from 0.
        ranks: Number of processes that share each batch.
    """

    device: torch.device
    rank: int = 0
    ranks: int = 1

    @property
    def accelerators(self) -> list[torch.device]:
        """Return the GPU of this process in a list, or an empty list on the CPU."""
        return [self.device] if self.device.type == "cuda" else []

    @property
    def leader(self) -> bool:
        """Return whether this is the first rank, which evaluates, prints and writes files."""
        return self.rank == 0

    def moved(self, micro_batch: Batch) -> Batch:
        """Return a micro-batch, moved to the device of this process."""
        return tuple(tensor.to(self.device) for tensor in micro_batch)

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return the model, wrapped in DistributedDataParallel if there are several processes."""
        if self.ranks == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def alone(command: str) -> Process:
    """Return a run's only process, with the first GPU if the machine has a GPU.

    Args:
        command: Name of the command, for the error message.

    Raises:
        ValueError: torchrun started several processes.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        raise ValueError(
            f"The command largebatch {command} runs on one process, but torchrun started {ranks} "
            "processes. Only the commands train and critical support several processes. Start "
            f"without torchrun: python -m largebatch {command}"
        )
    return Process(device=_device(0))


@contextmanager
def process_group() -> Iterator[Process]:
    """Join the processes that torchrun started, and close their process group at the end.

    The backend is NCCL on GPUs and gloo on CPUs. A process group that already exists is used and
    stays open. Without torchrun, the run has one process and no process group.
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
    """Create the process group.

    torchrun keeps one key-value store across its restarts (torch 2.13, pytorch/pytorch#135712). A
    process could read the address of another process from before the restart. Each restart
    therefore uses its own keys. The restart number is known to be equal on all ranks only if there
    is one node.
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
