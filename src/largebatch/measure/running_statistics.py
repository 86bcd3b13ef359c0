"""Restore a model's running statistics after a skipped training step."""

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
"""Largest total size, in bytes, of copied buffers that are not of normalization layers."""

Slot = tuple[nn.Module, str, str]
"""Tuple of a module, a buffer's name in the module, and the buffer's name in the model."""


class RunningStatistics:
    """Save the buffers of a model when a step begins, and restore them if the step is skipped.

    The saved buffers are `running_mean`, `running_var` and `num_batches_tracked` of BatchNorm,
    SyncBatchNorm and InstanceNorm. Buffers of other modules are saved, too, from the smallest to
    the largest, up to 1 MiB in total. If a skipped step changed a larger buffer, one warning names
    the buffer.

    The buffers are saved in the step's first forward pass that computes gradients. Before this
    forward pass, DistributedDataParallel has made the buffers equal on all ranks, and a checkpoint
    may have been loaded. If the forward pass is not observed, because the model is compiled or only
    submodules are called, the buffers are saved at the beginning of the next step.

    Mutable: holds one copy of the buffers.

    Args:
        model: The model, with or without DistributedDataParallel and `torch.compile`.
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
        """Prepare to save the buffers in a training step that begins now."""
        if not self._slots and not self._large:
            return
        if self._hook is None:
            self._hook = self._root.register_forward_pre_hook(_FirstForward(self))
            self._waiting = True
        if self._waiting:  # no forward pass was observed in the last step
            self.save()
        self._waiting = True

    def close(self) -> None:
        """Remove the hook from the model and discard the copies; a second call does nothing."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._tensors, self._groups = None, [], []

    def first_forward(self) -> None:
        """Save the buffers once per step; the hook calls this method before each forward pass."""
        if self._waiting and torch.is_grad_enabled():
            self._waiting = False
            self.save()

    @torch.no_grad()
    def save(self) -> None:
        """Copy the present buffers with one kernel launch per type and device."""
        now = [module._buffers[name] for module, name, _ in self._slots]
        if len(now) != len(self._tensors) or not all(map(operator.is_, now, self._tensors)):
            self._tensors, self._groups = now, _groups(now)
        for tensors, copies in self._groups:
            torch._foreach_copy_(copies, tensors)
        self._versions = [_version(module._buffers[name]) for module, name, _ in self._large]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the saved buffers."""
        for (module, name, _), tensor in zip(self._slots, self._tensors, strict=False):
            if module._buffers[name] is not tensor:  # the forward pass assigned a new tensor
                module._buffers[name] = tensor
        for tensors, copies in self._groups:
            torch._foreach_copy_(tensors, copies)
        self._warn_of_large()

    def repair(self) -> None:
        """Restore the saved buffers if a buffer is not finite now.

        Call `repair` after a step whose gradient is infinite only because of the loss scale. The
        forward pass of a step with a too large loss scale is valid, so finite buffers are kept. The
        host reads one number per buffer.
        """
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
                "A step was skipped because its gradient was not finite, and its forward pass "
                f"changed the buffers {', '.join(changed)}. These buffers are not restored, "
                "because only 1 MiB of buffers is saved. Check that the buffers are finite, or "
                f"restore the buffers yourself: model.get_buffer({changed[0]!r}).",
                stacklevel=2,
            )


class _FirstForward:
    """Run as a forward pre-hook of the model; a copied or saved hook has no effect."""

    def __init__(self, statistics: RunningStatistics | None) -> None:
        self._statistics = None if statistics is None else ref(statistics)

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return  # adds nothing to a compiled graph
        statistics = None if self._statistics is None else self._statistics()
        if statistics is not None:
            statistics.first_forward()

    def __reduce__(self) -> tuple[type[_FirstForward], tuple[None]]:
        return _FirstForward, (None,)


def _root(model: nn.Module) -> nn.Module:
    """Return the module whose forward pass gets the hook.

    The hook is on the module inside DistributedDataParallel, because DistributedDataParallel makes
    the buffers equal before the inner module's forward pass. In a compiled model, the hook is on
    the compiled module.
    """
    wrapper = replica(model)
    compiled = "_orig_mod" in model._modules
    return model if compiled or wrapper is None else wrapper.module


def _slots(model: nn.Module) -> tuple[list[Slot], list[Slot]]:
    """Return the buffers that are copied, and the buffers that are too large to be copied."""
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
    """Return the tensors grouped by device and type, with empty tensors for the copies."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None:
            groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return [(group, [torch.empty_like(t) for t in group]) for group in groups.values()]


def _version(tensor: Tensor | None) -> tuple[Tensor | None, int]:
    return tensor, 0 if tensor is None or tensor.is_inference() else tensor._version
