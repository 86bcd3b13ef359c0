"""Refuses models whose parameters are sharded over the ranks."""

from __future__ import annotations

import sys

from torch import Tensor, nn


def refuse_sharded(model: nn.Module) -> None:
    """Refuses a model with sharded parameters, before any hook is on it.

    Raises:
        ValueError: FSDP1, FSDP2 or tensor parallelism, naming the first module or parameter.
    """
    what = _fsdp1(model) or _dtensor(model)
    if what is not None:
        raise ValueError(
            f"{what}. Sharded parameters are not supported yet: a rank would see the squares of "
            "its shards and not those of its gradient. If the model fits on one device, use "
            "model = torch.nn.parallel.DistributedDataParallel(model)."
        )


def _fsdp1(model: nn.Module) -> str | None:
    kind = _loaded("torch.distributed.fsdp", "FullyShardedDataParallel")
    for name, module in model.named_modules():
        if kind is not None and isinstance(module, kind):
            return f"{name or 'The model'} is in FullyShardedDataParallel (FSDP1)"
    return None


def _dtensor(model: nn.Module) -> str | None:
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            return f"{name} is sharded: it is a DTensor, as fully_shard (FSDP2) makes them"
    return None


def is_sharded(parameter: Tensor) -> bool:
    """Return whether a parameter is a DTensor."""
    kind = _loaded("torch.distributed.tensor", "DTensor")
    return kind is not None and isinstance(parameter, kind)


def _loaded(module: str, name: str) -> type | None:
    found = sys.modules.get(module)  # slow to import: only if somebody has
    return None if found is None else vars(found).get(name)
