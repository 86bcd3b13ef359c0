"""Counts the forward passes of a model, and finds which of them a backward came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from largebatch.core.errors import LargeBatchError
from largebatch.measure.random_state import accelerators_of
from largebatch.measure.seen_forward import MOST, SeenForward, print_of, seen_forward

Samples = Callable[[tuple[Any, ...], dict[str, Any]], float]
"""(args, kwargs) of a forward pass -> samples in it."""


class Forwards:
    """Follows the forward passes of the outermost module that the user gave.

    Only passes with gradients enabled count. A forward pass inside a backward, which recomputes a
    checkpointed segment, does not. Inside a compiled graph the hook does nothing but count, so that
    `torch.compile(fullgraph=True)` can trace it. If the forward pass was compiled before the hook
    came, no pass is counted.

    Mutable: holds two hooks of the model, and the passes of the step in hand.

    Args:
        model: the outermost module: DistributedDataParallel, a compiled module, or the bare model.
        samples: counts the samples of a forward pass; None takes the first dimension of the first
            tensor argument.
        reached: called in a backward with the number of the forward pass that it came from.
        failed: called with an exception of a hook, which does not go on to the model's caller.

    Attributes:
        count: forward passes so far, over all steps.
        sized: whether the samples of each pass are counted.
        paused: whether passes are ignored.
        samples: number of a forward pass of this step -> its samples.
        marks: whether a few elements of the step's first input are kept.
        first: those elements; else None.
        keeps: whether the forward passes of the step are kept, to be repeated.
        kept: those passes; at most `MOST` of them.
        problem: the first error of `samples` in this step; a hook does not raise.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: Samples | None = None,
        reached: Callable[[int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._samples_of = samples
        self._reached, self._failed = reached, failed
        self.count = self.base = 0
        self.sized = True
        self.paused = self.keeps = self.marks = False
        self.kept: list[SeenForward] = []
        self.problem: LargeBatchError | None = None
        self.samples: dict[int, float] = {}
        self._traced_rows = 0
        self.first: Tensor | None = None
        self._model = model
        self._before: RemovableHandle | None = None
        self._after: RemovableHandle | None = None

    @property
    def in_step(self) -> int:
        """Return the forward passes of the step in hand."""
        return self.count - self.base

    @property
    def traced(self) -> bool:
        """Return whether the forward passes run inside a compiled graph, which reports no links."""
        return self._traced_rows > 0

    @property
    def rows(self) -> float:
        """Return the samples of all forward passes of the step in hand; 0 if unknown."""
        return sum(self.samples.values()) or float(self._traced_rows * self.in_step)

    @property
    def linked(self) -> bool:
        """Return whether outputs report the backward that reaches them."""
        return self._after is not None

    def link(self, wanted: bool) -> None:
        """Have outputs report the backward that reaches them, or not."""
        if wanted and self._after is None:
            self._after = self._model.register_forward_hook(_Ends(self))
        elif not wanted and self._after is not None:
            self._after.remove()
            self._after = None

    def follow(self) -> None:
        """Put the hooks on the model; a second call does nothing."""
        if self._before is None:
            self._before = self._model.register_forward_pre_hook(_Begins(self), with_kwargs=True)
            self.link(True)

    def open(self) -> None:
        """Begin a step."""
        self.base = self.count
        self.samples = {}
        self.first = self.problem = None
        self.kept = []

    def remove(self) -> None:
        """Take the hooks off the model."""
        if self._before is not None:
            self._before.remove()
            self._before = None
        self.link(False)

    def begins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count a forward pass."""
        if not torch.is_grad_enabled():
            return
        if torch.compiler.is_compiling():
            self.count += 1
            for each in args:
                if isinstance(each, Tensor):
                    self._traced_rows = each.shape[0] if each.dim() else 0
                    break
            return
        if self._ignored():
            return
        self.count += 1
        if not (self.sized or self.keeps):
            return
        if self._samples_of is not None:
            try:
                self.samples[self.count] = _checked(self._samples_of(args, kwargs))
            except Exception as error:
                self.problem = self.problem or _samples_failed(error)
        try:
            if self.keeps and self.in_step <= MOST:
                self._keep(args, kwargs)
        except Exception as error:
            self._failed(error)
        try:
            self._look(args, kwargs)
        except Exception:  # such an input has no known size, which is no reason to refuse a step
            return

    def ends(self, output: Any) -> None:
        """Have the output report the backward that reaches it."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self._ignored():
            return
        try:
            tensors = [output] if isinstance(output, Tensor) else list(tensor_leaves(output))
            nodes = {tensor.grad_fn: None for tensor in tensors}
            if self.keeps and len(self.kept) == self.in_step:
                _note_outputs(self.kept[-1], tensors)
        except Exception as error:
            self._failed(error)
            return
        for node in nodes:
            if node is not None:
                node.register_prehook(partial(self._arrived, self.count))

    def _arrived(self, number: int, gradients: tuple[Tensor | None, ...]) -> None:
        self._reached(number)

    def _keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(tensor_leaves((args, kwargs)), None)
        device = "cpu" if first is None else first.device.type
        devices = accelerators_of(self._model)
        self.kept.append(seen_forward(args, kwargs, device=device, devices=devices))

    def _ignored(self) -> bool:
        """Return whether a forward pass is of no training step.

        It recomputes a checkpointed segment, or a transform of torch.func runs it.
        """
        if self.paused or torch._C._current_graph_task_id() != -1:
            return True
        return torch._C._functorch.peek_interpreter_stack() is not None

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take what the inputs show by themselves."""
        if not self.sized:
            return
        plain = args and isinstance(args[0], Tensor)  # the usual case, which is fast
        first = args[0] if plain else next(tensor_leaves((args, kwargs)), None)
        if first is None:
            return
        if self._samples_of is None and first.dim():
            self.samples[self.count] = float(first.shape[0])
        if self.marks and self.first is None:
            self.first = first.detach().flatten()[:64].clone()


def _checked(samples: Any) -> float:
    size = float(samples)
    if not 0.0 <= size < math.inf:
        raise ValueError(f"it returned {size:g}")
    return size


def _samples_failed(error: Exception) -> LargeBatchError:
    failed = LargeBatchError(
        f"The function passed as samples= failed: {type(error).__name__}: {error}. It gets the "
        "arguments of the model's forward pass and returns the samples in it: "
        "lb.attach(..., samples=lambda args, kwargs: args[0].shape[1])."
    )
    failed.__cause__ = error
    return failed


def _note_outputs(seen: SeenForward, outputs: Sequence[Tensor]) -> None:
    """Note a forward pass's outputs, and their gradients when these come."""

    def note(at: int, number: int, gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[number]
        if gradient is not None:
            seen.gradients[at] = gradient.detach()

    seen.prints = [print_of(output) for output in outputs]
    for at, output in enumerate(outputs):
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(partial(note, at, output.output_nr))


class _Begins:
    """A forward pre-hook, of which a copy of the model gets none."""

    def __init__(self, forwards: Forwards) -> None:
        self._forwards = forwards

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forwards.begins(args, kwargs)

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> Any:
        return _no_hook, ()


class _Ends:
    """A forward hook, of which a copy of the model gets none."""

    def __init__(self, forwards: Forwards) -> None:
        self._forwards = forwards

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._forwards.ends(output)

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> Any:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*args: Any) -> None:
    """Do nothing: the hook of a copied model."""


def tensor_leaves(value: Any) -> Iterator[Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses, which may be cyclic."""
    return _tensor_leaves(value, set())


def _tensor_leaves(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type) and id(leaf) not in seen:
            seen.add(id(leaf))
            for one in fields(leaf):
                yield from _tensor_leaves(getattr(leaf, one.name, None), seen)
