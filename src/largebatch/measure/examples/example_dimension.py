"""Find the dimension of the examples in each module by running a copy of the model.

Shapes alone are ambiguous. An embedding of 64 positions that is called once for all examples looks
like a layer on 64 examples, and a sequence-first layer looks like an example-first layer. So the
copy of the model runs on the first half of the examples and on all examples, in evaluation mode and
without gradients. The rows of an example must have the same values in both runs. The run on the
first half is repeated to detect modules that draw random numbers even in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from largebatch.core.errors import LargeBatchError
from largebatch.measure.examples.normalization import uses_batch_statistics
from largebatch.measure.examples.parameter_owners import Owner
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.model_copy import copy_of_inputs, copy_of_model
from largebatch.measure.random_state import accelerators_of, keep_random_state

CallKey = tuple[str, int]
"""Pair of a module's name and the number of its earlier calls in the same forward pass."""

Layout = dict[CallKey, int]
"""Number of output rows per example for each module call; 0 if all examples share the call."""


def layout_of(
    model: nn.Module, args: Any, kwargs: Any, *, rows: int, owners: Sequence[Owner]
) -> Layout:
    """Return the number of output rows per example for each call of a module.

    A copy of the model runs on copies of the inputs. If the model cannot be copied, the model
    itself runs, and its modes, its buffers and the global random generators are restored.

    Args:
        model: The model.
        args, kwargs: Arguments of the forward pass.
        rows: Number of examples.
        owners: The modules whose calls are observed.

    Raises:
        ExamplesRefused: The first dimension of a module's output does not index the examples, or
            the module's output for one example depends on other examples.
    """
    part = rows // 2

    def cut(x: Any) -> Any:
        return x[:part] if isinstance(x, Tensor) and x.dim() and len(x) == rows else x

    few: dict[CallKey, Tensor] = {}
    random: set[CallKey] = set()
    layout: Layout = {}

    def keep(key: CallKey, output: Tensor) -> None:
        few[key] = output.clone()  # an in-place activation may overwrite the output

    def repeat(key: CallKey, output: Tensor) -> None:
        if key in few and not torch.equal(few[key], output):
            random.add(key)

    def compare(key: CallKey, output: Tensor) -> None:
        if key not in few:
            return
        before = few.pop(key)
        layout[key] = _times(key[0], before.shape, output.shape, part, rows)
        if layout[key] and key not in random and not coupled:
            _check_alike(key[0], before, output[: len(before)])

    model, owners = _copied(model, owners)
    with _as_it_was(model):
        # Without running statistics, batch normalization uses batch statistics even in evaluation
        # mode.
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        coupled = any(uses_batch_statistics(module) for module in norms)
        whole = args, kwargs
        half = tree_map(cut, whole)
        try:
            _run(model, half, owners, keep)
        except Exception:  # a tensor was cut in another dimension, so only shapes are used
            return {}
        _run(model, half, owners, repeat)
        _run(model, whole, owners, compare)
    return layout


def _copied(model: nn.Module, owners: Sequence[Owner]) -> tuple[nn.Module, Sequence[Owner]]:
    try:
        twin, _ = copy_of_model(model)
    except LargeBatchError:
        return model, owners
    return twin, [replace(owner, module=twin.get_submodule(owner.name)) for owner in owners]


def _times(name: str, few: torch.Size, all_: torch.Size, part: int, rows: int) -> int:
    if few == all_:
        return 0
    times = few[0] // part
    if few[1:] != all_[1:] or (few[0], all_[0]) != (times * part, times * rows):
        raise ExamplesRefused(
            f"The first dimension of the output of {_called(name)} is not the examples: the output "
            f"has the shape {tuple(few)} for {part} examples and {tuple(all_)} for {rows} "
            "examples. Put the examples first (batch_first=True), or measure micro-batches "
            "instead: meter=lb.Meter(model)."
        )
    return times


def _check_alike(name: str, few: Tensor, same: Tensor) -> None:
    scale = same.abs().max().clamp_min(torch.finfo(same.dtype).tiny)
    if not bool((same - few).abs().max() <= 0.01 * scale):
        raise ExamplesRefused(
            f"The output of {_called(name)} for one example changes if other examples are removed "
            "from the batch, so the examples depend on each other or change their order. Measure "
            "micro-batches instead: meter=lb.Meter(model)."
        )


def _called(name: str) -> str:
    return f"the module {name!r}" if name else "the model"


def _run(
    model: nn.Module,
    given: tuple[Any, Any],
    owners: Sequence[Owner],
    report: Callable[[CallKey, Tensor], None],
) -> None:
    """Run the model, and pass the first output of each observed module's call to `report`."""
    counts: dict[str, int] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            first = out[0] if isinstance(out, (tuple, list)) else out
            at = counts[name] = counts.get(name, -1) + 1
            if isinstance(first, Tensor) and first.dim() and first.is_floating_point():
                report((name, at), first)

        return hook

    handles = [owner.module.register_forward_hook(hook_for(owner.name)) for owner in owners]
    try:
        args, kwargs = copy_of_inputs(given)
        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modes
        for name, buffer in module.named_buffers(recurse=False)
    ]
    caches = torch.is_autocast_cache_enabled()
    try:
        with keep_random_state(accelerators_of(model)), torch.no_grad():
            # A weight that is cast and cached in this run would get no gradient in the user's
            # forward pass.
            torch.set_autocast_cache_enabled(False)
            for module in modes:
                module.training = False
            yield
    finally:
        torch.set_autocast_cache_enabled(caches)
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer)
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
