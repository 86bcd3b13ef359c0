"""Count the forward passes of a model and find the forward pass of each backward call."""

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
"""Function (args, kwargs) of a forward pass -> number of samples in the forward pass."""


class Forwards:
    """Count the forward passes of the outermost module that the user passed.

    Only forward passes with gradients enabled are counted. A forward pass inside a backward call,
    which recomputes a checkpointed segment, is not counted. Inside a compiled graph the hook only
    counts, so that `torch.compile(fullgraph=True)` can trace it. If the forward pass was compiled
    before the hook was registered, no forward pass is counted.

    Mutable: holds two hooks of the model, and the forward passes of the current step.

    Args:
        model: The outermost module: DistributedDataParallel, a compiled module, or the plain model.
        samples: Function that counts the samples of a forward pass; None uses the size of the first
            dimension of the first tensor argument.
        reached: Function that is called during a backward call with the number of the forward pass
            that the backward call started from.
        failed: Function that receives an exception of a hook, instead of the exception being
            raised.

    Attributes:
        count: Number of forward passes so far, over all training steps. sized: Whether the samples
            of each forward pass are counted.
        paused: Whether forward passes are ignored.
        samples: Number of samples of each forward pass in the current step, by number of the
            forward pass.
        marks: Whether a few elements of the step's first input are kept.
        first: A few elements of the step's first input; None if the elements are not kept. keeps:
            Whether the forward passes of the step are kept, so that the passes can be repeated.
            kept: The kept forward passes; at most `MOST` forward passes.
        problem: First error of the function `samples` in this step. The hook does not raise it.
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
        """Return the number of forward passes of the current step."""
        return self.count - self.base

    @property
    def traced(self) -> bool:
        """Return whether the forward passes run inside a compiled graph.

        A compiled graph does not show which forward pass a backward call started from.
        """
        return self._traced_rows > 0

    @property
    def rows(self) -> float:
        """Return the number of samples in all forward passes of the step; 0 if unknown."""
        return sum(self.samples.values()) or float(self._traced_rows * self.in_step)

    @property
    def linked(self) -> bool:
        """Return whether outputs of the model report backward calls."""
        return self._after is not None

    def link(self, wanted: bool) -> None:
        """Register or remove the hook by which outputs of the model report backward calls."""
        if wanted and self._after is None:
            self._after = self._model.register_forward_hook(_Ends(self))
        elif not wanted and self._after is not None:
            self._after.remove()
            self._after = None

    def follow(self) -> None:
        """Register the hooks on the model; a second call does nothing."""
        if self._before is None:
            self._before = self._model.register_forward_pre_hook(_Begins(self), with_kwargs=True)
            self.link(True)

    def open(self) -> None:
        """Reset the counts at the beginning of a training step."""
        self.base = self.count
        self.samples = {}
        self.first = self.problem = None
        self.kept = []

    def remove(self) -> None:
        """Remove the hooks from the model."""
        if self._before is not None:
            self._before.remove()
            self._before = None
        self.link(False)

    def begins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count a forward pass when the forward pass begins."""
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
        except Exception:  # the step is measured without the number of samples
            return

    def ends(self, output: Any) -> None:
        """Register a hook that reports the backward calls that start from the output."""
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
        """Return whether a forward pass must not be counted.

        A forward pass is not counted if it recomputes a checkpointed segment, or if a transform of
        torch.func runs it.
        """
        if self.paused or torch._C._current_graph_task_id() != -1:
            return True
        return torch._C._functorch.peek_interpreter_stack() is not None

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the number of samples, and a few elements, from the inputs."""
        if not self.sized:
            return
        plain = args and isinstance(args[0], Tensor)  # fast path for the usual case
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
        raise ValueError(f"it returned {size:g}, which is not a number of samples")
    return size


def _samples_failed(error: Exception) -> LargeBatchError:
    failed = LargeBatchError(
        f"The function passed as samples= failed: {type(error).__name__}: {error}. The function "
        "receives the arguments of the model's forward pass and must return the number of samples: "
        "lb.attach(..., samples=lambda args, kwargs: args[0].shape[1])."
    )
    failed.__cause__ = error
    return failed


def _note_outputs(seen: SeenForward, outputs: Sequence[Tensor]) -> None:
    """Record the outputs of a forward pass, and the outputs' gradients in the backward call."""

    def note(at: int, number: int, gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[number]
        if gradient is not None:
            seen.gradients[at] = gradient.detach()

    seen.prints = [print_of(output) for output in outputs]
    for at, output in enumerate(outputs):
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(partial(note, at, output.output_nr))


class _Begins:
    """Run as a forward pre-hook of the model; copies of the model get a hook that does nothing."""

    def __init__(self, forwards: Forwards) -> None:
        self._forwards = forwards

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forwards.begins(args, kwargs)

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> Any:
        return _no_hook, ()


class _Ends:
    """Run as a forward hook of the model; copies of the model get a hook that does nothing."""

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
    """Do nothing, as the hook of a copied model."""


def tensor_leaves(value: Any) -> Iterator[Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses, even if cyclic."""
    return _tensor_leaves(value, set())


def _tensor_leaves(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type) and id(leaf) not in seen:
            seen.add(id(leaf))
            for one in fields(leaf):
                yield from _tensor_leaves(getattr(leaf, one.name, None), seen)
