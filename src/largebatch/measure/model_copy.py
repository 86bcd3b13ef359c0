"""Copies a model and its inputs, for forward passes that must leave no trace in a training.

A forward pass may change more than buffers: weights that it moves itself, Python attributes,
generators of its own, its inputs. So it runs on a copy.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from largebatch.core.errors import LargeBatchError
from largebatch.measure.forwards import tensor_leaves
from largebatch.measure.memory import bytes_text, free_bytes

PART_OF_MEMORY = 0.5
"""Of the free memory, which a copy, or measuring single examples, may take."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copy_of_model(model: nn.Module) -> tuple[nn.Module, Mapping[int, Any]]:
    """Return a copy of a model, and the copies by the `id` of what was copied.

    The copy shares no tensor and no generator with the model. It has the hooks of torch alone, as
    those of `torch.nn.utils.spectral_norm`, since a user's hook would run once more.

    Raises:
        LargeBatchError: something in the model cannot be copied, or the memory does not suffice.
    """
    check_memory(_bytes(model), device=_device(model), what="Copying the model")
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name in HOOKS:
            hooks = vars(module).get(name) or {}
            kept = {at: hook for at, hook in hooks.items() if _of_torch(hook)}
            memo[id(vars(module).get(name))] = OrderedDict(kept)
        for leaf in tree_leaves(dict(vars(module))):
            if isinstance(leaf, torch.Generator):
                memo[id(leaf)] = torch.Generator(leaf.device).set_state(leaf.get_state())
            elif isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                memo[id(leaf)] = leaf.detach().clone()  # deepcopy takes leaves alone
    try:
        return copy.deepcopy(model, memo), memo
    except Exception as error:
        raise LargeBatchError(
            "The model cannot be copied to be run once more without a trace: "
            f"{type(error).__name__}: {error}."
        ) from error


def copy_of_inputs(inputs: Any) -> Any:
    """Return a copy of a forward pass's arguments, whose tensors belong to no graph.

    >>> x = torch.ones(2)
    >>> (y, flag), _ = copy_of_inputs(((x, True), {}))
    >>> y.zero_(), x, flag
    (tensor([0., 0.]), tensor([1., 1.]), True)
    """

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return _leaf(leaf)
        return copy.deepcopy(leaf, {id(tensor): _leaf(tensor) for tensor in tensor_leaves(leaf)})

    return tree_map(copied, inputs)


def check_memory(extra: int | None, *, device: torch.device, what: str) -> None:
    """Check that something may take `extra` bytes; None means that this is unknown.

    Raises:
        LargeBatchError: it is more than half of the free memory.
    """
    free = free_bytes(device)
    if extra is None or free is None or extra <= PART_OF_MEMORY * free:
        return
    raise LargeBatchError(
        f"{what} would take {bytes_text(extra)} more memory, and {bytes_text(free)} are free."
    )


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _of_torch(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.")


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _device(model: nn.Module) -> torch.device:
    first = next(iter((*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if first is None else first.device
