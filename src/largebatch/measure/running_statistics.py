"""Copies of a model's running statistics, which a step that is skipped must not have changed."""

from __future__ import annotations

import operator
import warnings
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from largebatch.measure.parameters import replica

LIMIT = 2**20
"""Bytes of a model's other buffers that are copied in each step, over all of them together."""

Slot = tuple[nn.Module, str, str]
"""A module, its buffer's name, and the buffer's name in the whole model."""


class RunningStatistics:
    """Saves the buffers of a model when a step begins and restores them if the step is skipped.

    The buffers are `running_mean`, `running_var` and `num_batches_tracked` of BatchNorm,
    SyncBatchNorm and InstanceNorm, and the smallest of all others up to 1 MiB together. If a
    skipped step changed a larger one, a warning names it once.

    They are saved in the step's first forward with gradients. At that time
    DistributedDataParallel has made them equal on all ranks, and what was loaded between two steps
    is in them. If that forward is not seen, since it is compiled or only submodules are called,
    they are saved when the next step begins.

    Mutable: holds one copy.

    Args:
        model: bare, or in DistributedDataParallel, `torch.compile` or both.
    """

    def __init__(self, model: nn.Module) -> None:
        self._slots, self._large = _slots(model)
        self._root = _root(model)
        self._hook: RemovableHandle | None = None
        self._tensors: list[Tensor | None] = []
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []
        self._versions: list[tuple[Tensor | None, int]] = []
        self._waiting = False

    def open(self) -> None:
        """Begins a step."""
        if not self._slots and not self._large:
            return
        if self._hook is None:
            self._hook = self._root.register_forward_pre_hook(_FirstForward(self))
            self._waiting = True
        if self._waiting:  # the last step's forward was not seen, or there was none
            self.save()
        self._waiting = True

    def close(self) -> None:
        """Takes the hook off the model and forgets the copy; a second call does nothing."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._tensors, self._groups = None, [], []

    def first_forward(self) -> None:
        """Saves, once in a step; called before each forward."""
        if self._waiting and torch.is_grad_enabled():
            self._waiting = False
            self.save()

    @torch.no_grad()
    def save(self) -> None:
        """Copies the buffers as they are now: one launch for each type and device of them."""
        now = [module._buffers[name] for module, name, _ in self._slots]
        if len(now) != len(self._tensors) or not all(map(operator.is_, now, self._tensors)):
            self._tensors, self._groups = now, _groups(now)
        for tensors, copies in self._groups:
            torch._foreach_copy_(copies, tensors)
        self._versions = [_version(module._buffers[name]) for module, name, _ in self._large]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the saved buffers back."""
        for (module, name, _), tensor in zip(self._slots, self._tensors, strict=False):
            if module._buffers[name] is not tensor:  # a forward that assigns a new tensor
                module._buffers[name] = tensor
        for tensors, copies in self._groups:
            torch._foreach_copy_(tensors, copies)
        self._warn_of_large()

    def repair(self) -> None:
        """Puts the saved buffers back if one of them is not finite now; reads one number on the
        host. It is for a step that only the loss scale made infinite: its forward was right."""
        now = [module._buffers[name] for module, name, _ in self._slots]
        finite = [t.isfinite().all().cpu() for t in now if t is not None and t.is_floating_point()]
        if not all(finite):
            self.restore()

    def _warn_of_large(self) -> None:
        changed = [
            label
            for (module, name, label), (tensor, version) in zip(
                self._large, self._versions, strict=False
            )
            if module._buffers[name] is not tensor or _version(tensor)[1] != version
        ]
        if changed:
            self._large = []
            warnings.warn(
                f"A step was skipped since it was not finite, and its forward changed "
                f"{', '.join(changed)}. Buffers of more than 1 MiB together are not restored. "
                "Check that they are finite, or restore them yourself: "
                f"model.get_buffer({changed[0]!r}).",
                stacklevel=2,
            )


class _FirstForward:
    """A forward pre-hook. A copy of the model, or a saved one, has it without its effect."""

    def __init__(self, statistics: RunningStatistics | None) -> None:
        self._statistics = None if statistics is None else ref(statistics)

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return  # puts nothing into a graph
        statistics = None if self._statistics is None else self._statistics()
        if statistics is not None:
            statistics.first_forward()

    def __reduce__(self) -> tuple[type[_FirstForward], tuple[None]]:
        return _FirstForward, (None,)


def _root(model: nn.Module) -> nn.Module:
    """Return the module whose forward is hooked: inside DDP, which makes buffers equal before it,
    but never inside of what is compiled."""
    wrapper = replica(model)
    compiled = "_orig_mod" in model._modules
    return model if compiled or wrapper is None else wrapper.module


def _slots(model: nn.Module) -> tuple[list[Slot], list[Slot]]:
    """Return the buffers that are copied, and those that are too large for that."""
    known, others, found = [], [], set[int]()
    for path, module in model.named_modules():
        for name, tensor in module._buffers.items():
            if tensor is None or id(tensor) in found:
                continue
            found.add(id(tensor))
            slot = module, name, f"{path}.{name}" if path else name
            if isinstance(module, _NormBase):
                known.append(slot)
            else:
                others.append((tensor.numel() * tensor.element_size(), slot))
    small: list[Slot] = []
    large: list[Slot] = []
    total = 0
    for size, slot in sorted(others, key=operator.itemgetter(0)):
        total += size
        (small if total <= LIMIT else large).append(slot)
    return known + small, large


def _groups(tensors: list[Tensor | None]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return tensors of one type and device, and room for their copies."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None:
            groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return [(group, [torch.empty_like(t) for t in group]) for group in groups.values()]


def _version(tensor: Tensor | None) -> tuple[Tensor | None, int]:
    return tensor, 0 if tensor is None or tensor.is_inference() else tensor._version
