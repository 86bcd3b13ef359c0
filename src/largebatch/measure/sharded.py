"""Reject models whose parameters are sharded over the ranks."""

from __future__ import annotations

import sys

from torch import Tensor, nn


def refuse_sharded(model: nn.Module) -> None:
    """Raise an error if a model has sharded parameters.

    Raises:
        ValueError: The model uses FSDP1, FSDP2 or tensor parallelism. The message names the first
            sharded module or parameter.
    """
    what = _fsdp1(model) or _dtensor(model)
    if what is not None:
        raise ValueError(
            f"{what}. Sharded parameters are not supported, because each rank has only shards "
            "of the gradient. If the model fits on one device, use "
            "model = torch.nn.parallel.DistributedDataParallel(model)."
        )


def _fsdp1(model: nn.Module) -> str | None:
    kind = _loaded("torch.distributed.fsdp", "FullyShardedDataParallel")
    for name, module in model.named_modules():
        if kind is not None and isinstance(module, kind):
            return f"{name or 'The model'} is wrapped in FullyShardedDataParallel (FSDP1)"
    return None


def _dtensor(model: nn.Module) -> str | None:
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            return f"The parameter {name} is sharded (a DTensor, as made by fully_shard of FSDP2)"
    return None


def is_sharded(parameter: Tensor) -> bool:
    """Return whether a parameter is a DTensor."""
    kind = _loaded("torch.distributed.tensor", "DTensor")
    return kind is not None and isinstance(parameter, kind)


def _loaded(module: str, name: str) -> type | None:
    found = sys.modules.get(module)  # an import would be slow, so only imported modules are used
    return None if found is None else vars(found).get(name)
