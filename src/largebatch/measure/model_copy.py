"""Copy a model and its inputs, for forward passes that must not change the model.

A forward pass may change not only buffers but also weights, Python attributes, the module's own
random generators, or its inputs. Therefore a forward pass that must change nothing runs on a copy.
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
"""Fraction of the free memory that a copy, or measuring single examples, may use."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copy_of_model(model: nn.Module) -> tuple[nn.Module, Mapping[int, Any]]:
    """Return a copy of a model, and a mapping from the `id` of each copied object to its copy.

    The copy shares no tensor and no generator with the model. The copy keeps the hooks that torch
    itself registers, for example in `torch.nn.utils.spectral_norm`. The copy does not keep the
    user's hooks, because the user's hooks would run one more time.

    Raises:
        LargeBatchError: An object in the model cannot be copied, or there is not enough memory.
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
                memo[id(leaf)] = leaf.detach().clone()  # deepcopy copies only leaf tensors
    try:
        return copy.deepcopy(model, memo), memo
    except Exception as error:
        raise LargeBatchError(
            "The model cannot be copied, so it cannot run a second time without changing the "
            f"training: {type(error).__name__}: {error}."
        ) from error


def copy_of_inputs(inputs: Any) -> Any:
    """Return a copy of the arguments of a forward pass, with tensors outside of any graph.

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
    """Check that `extra` bytes are at most half of the free memory.

    Args:
        extra: Number of bytes that are needed. If the number is None (unknown), nothing is checked.
        device: The device whose memory is used.
        what: Subject of the error message, such as "Copying the model".

    Raises:
        LargeBatchError: More than half of the free memory is needed.
    """
    free = free_bytes(device)
    if extra is None or free is None or extra <= PART_OF_MEMORY * free:
        return
    raise LargeBatchError(
        f"{what} would need {bytes_text(extra)} of memory, but only {bytes_text(free)} are free. "
        "At most half of the free memory is used."
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
