"""Define the taps, which observe the gradients of each backward call on this rank.

`LeafHooks` receives each parameter's gradient from autograd before autograd adds it to `.grad` and
before DistributedDataParallel reduces it. `Detached` clears `.grad` before each backward call and
adds up the gradients itself. `Flat` keeps the gradients of all parameters in one buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from largebatch.core.errors import LargeBatchError, MicroBatchMissed
from largebatch.measure.complex_gradients import add_each, as_real, copy_real
from largebatch.measure.parameters import WHOLE, Parameters
from largebatch.measure.ranks import Ranks

See = Callable[[int, Tensor], None]
"""Function (parameter index, gradient); the index `WHOLE` means all gradients in one row."""


class Tap(Protocol):
    """Define the interface of a tap, which observes the gradients of each backward call.

    A meter calls `begin` before and `end` after each backward call of a measured step.

    Attributes:
        reduces: Whether the tap averages the gradients of a measured step over the ranks, so that
            DistributedDataParallel must not average the gradients.
    """

    @property
    def reduces(self) -> bool: ...

    def bind(self, parameters: Parameters, ranks: Ranks) -> None:
        """Set the observed parameters; `bind` must be called only once."""
        ...

    def begin(self, see: See) -> None:
        """Begin a backward call whose gradients are passed to `see`."""
        ...

    def end(self, *, last: bool) -> None:
        """End a backward call; `last` is True for the last backward call of the step."""
        ...

    def rest(self) -> None:
        """Remove all hooks and overhead, because the next step is not measured."""
        ...

    def row(self) -> Tensor | None:
        """Return all gradients in one row, or None if the tap keeps separate gradients."""
        ...

    def clear(self, optimizer: Optimizer) -> None:
        """Clear the gradients after the optimizer step."""
        ...


class LeafHooks:
    """Observe each gradient in a hook before autograd adds it to `parameter.grad`.

    The hook does not change the gradient. The hook is registered on the graph node that accumulates
    the gradient and not on the tensor, so your own `torch.autograd.grad` calls do not run the hook.
    The observed gradients are exact with DistributedDataParallel, torch.compile and activation
    checkpointing. If a parameter gets two gradients in one backward call, an error is raised,
    because the squared norm of a sum cannot be computed from its terms' squared norms.

    >>> import largebatch as lb
    >>> meter = lb.Meter(torch.nn.Linear(2, 1), tap=LeafHooks())  # the same as lb.Meter(model)
    >>> meter.tap.reduces
    False

    Mutable: holds the hooks of one model.

    Raises:
        LargeBatchError: During training, a parameter got several gradients in one backward call, or
            was moved to another type or device after the hooks were registered.
    """

    reduces = False

    def bind(self, parameters: Parameters, ranks: Ranks) -> None:
        self._parameters = parameters
        self._nodes = [get_gradient_edge(tensor).node for tensor in parameters.tensors]
        self._handles: list[RemovableHandle] = []
        self._see: See | None = None
        self._active = False
        self.counts = [0] * len(parameters)
        self._none, self._once = [0] * len(parameters), [1] * len(parameters)

    def begin(self, see: See) -> None:
        if self._see is not see:
            self.rest()
            self._see = see
            self._handles = [
                node.register_prehook(self._hook(index, see))
                for index, node in enumerate(self._nodes)
            ]
        self.counts[:] = self._none
        self._active = True

    def end(self, *, last: bool) -> None:
        self._active = False
        if self.counts == self._once:
            return
        if max(self.counts) > 1:
            name = self._parameters.names[self.counts.index(max(self.counts))]
            raise LargeBatchError(
                f"The parameter {name} got several gradients in one backward call, as in reentrant "
                "checkpointing with tied weights, so no hook received the whole gradient. Use "
                "meter=lb.Meter(model, tap=lb.measure.Detached()), or "
                "checkpoint(use_reentrant=False)."
            )
        self.check_nodes()

    def rest(self) -> None:
        if self._see is None:
            return
        for handle in self._handles:
            handle.remove()
        self._handles, self._see = [], None
        self._active = False
        self.reset()

    def row(self) -> Tensor | None:
        return None

    def clear(self, optimizer: Optimizer) -> None:
        clear_gradients(optimizer)

    def reset(self) -> None:
        """Reset the number of gradients that each parameter got to 0."""
        self.counts[:] = self._none

    def check_nodes(self) -> None:
        """Check that each parameter without a gradient still has its hook.

        Raises: LargeBatchError: A parameter was moved to another type or device, so the parameter's
        hook is lost.
        """
        for index, tensor in enumerate(self._parameters.tensors):
            if self.counts[index] or not tensor.requires_grad:
                continue
            if get_gradient_edge(tensor).node is not self._nodes[index]:
                raise LargeBatchError(
                    f"The parameter {self._parameters.names[index]} was moved to another type or "
                    "device after lb.attach, lb.watch or lb.Controller was called, so the "
                    "parameter's gradient hook is lost. Move the model first: model.to(device)."
                )

    def _hook(self, index: int, see: See) -> Callable[[tuple[Tensor | None, ...]], None]:
        counts = self.counts

        def hook(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[0]
            if self._active and gradient is not None:  # a user's autograd.Function may return None
                counts[index] += 1
                see(index, gradient)

        return hook


class Detached:
    """Clear `.grad` before each backward call, and add up the gradients after the backward call.

    Use `Detached` for a model in which a parameter gets several gradients within one backward call,
    as in reentrant checkpointing with tied weights. `Detached` needs memory for one more copy of
    the gradient. With DistributedDataParallel, `Detached` averages the step's gradient over the
    ranks in one additional all-reduce of the gradient's size. If DistributedDataParallel is used, a
    parameter that the step does not use has the gradient 0 and not None.

    >>> import largebatch as lb
    >>> meter = lb.Meter(torch.nn.Linear(2, 1), tap=Detached())
    >>> meter.tap.reduces
    True

    Mutable: holds the sum of a step's gradients.
    """

    reduces = True

    def bind(self, parameters: Parameters, ranks: Ranks) -> None:
        self._parameters, self._ranks = parameters, ranks
        self._sum: list[Tensor | None] = []
        self._see: See | None = None

    def begin(self, see: See) -> None:
        self._see = see
        self._sum = []
        for parameter in self._parameters.tensors:
            self._sum.append(parameter.grad)
            parameter.grad = None

    def end(self, *, last: bool) -> None:
        assert self._see is not None
        sums, gradients = [], []
        for index, parameter in enumerate(self._parameters.tensors):
            gradient, total = parameter.grad, self._sum[index]
            if gradient is not None:
                self._see(index, gradient)
            if total is not None:
                parameter.grad = total
                if gradient is not None:
                    sums.append(total)
                    gradients.append(gradient)
        add_each(sums, gradients)
        self._sum = []
        if last:
            self._average()

    def rest(self) -> None:
        """Do nothing: autograd accumulates the gradients of a step that is not measured."""

    def row(self) -> Tensor | None:
        return None

    def clear(self, optimizer: Optimizer) -> None:
        clear_gradients(optimizer)

    def _average(self) -> None:
        if self._ranks.count == 1:
            return
        for parameter in self._parameters.tensors:  # some parameters may be unused on this rank
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._parameters.tensors if p.grad is not None]
        flat = torch.cat([as_real(g).reshape(-1) for g in gradients])
        self._ranks.sum_(flat.div_(self._ranks.count))
        shares = self._parameters.split_real(flat)
        for gradient, share in zip(gradients, shares, strict=True):
            copy_real(gradient, share)


class Flat:
    """Keep all gradients in one buffer, so that the squared norm is one dot product.

    `Flat` is faster than `LeafHooks` for small models and slower than `LeafHooks` for large models.
    Each gradient is a view into the buffer, and every step checks that each gradient still is a
    view into the buffer. Do not call `zero_grad`, because the controller clears the buffer. A
    parameter that a step does not use has the gradient 0 and not None, so weight decay and momentum
    still change that parameter.

    >>> import largebatch as lb
    >>> meter = lb.Meter(torch.nn.Linear(2, 1), tap=Flat())
    >>> meter.tap.reduces
    True

    Mutable: holds two buffers of the gradient's size.

    Raises:
        ValueError: The parameters have several types or are on several devices.
        MicroBatchMissed: During training, a gradient is no longer a view into the buffer.
    """

    reduces = True

    def bind(self, parameters: Parameters, ranks: Ranks) -> None:
        tensors = parameters.tensors
        kinds = {(t.dtype, t.device) for t in tensors}
        if len(kinds) > 1:
            raise ValueError(
                "lb.measure.Flat() requires that all parameters have one type and are on one "
                f"device; the model has {len(kinds)} combinations of type and device. Use "
                "meter=lb.Meter(model)."
            )
        self._parameters, self._ranks = parameters, ranks
        total = sum(t.numel() for t in tensors)
        self._now = torch.zeros(total, dtype=tensors[0].dtype, device=tensors[0].device)
        self._before = torch.zeros_like(self._now)
        self._fresh = True
        self._see: See | None = None
        self._views = parameters.split(self._now)
        for parameter, view in zip(tensors, self._views, strict=True):
            parameter.grad = view

    def begin(self, see: See) -> None:
        self._see = see

    def end(self, *, last: bool) -> None:
        assert self._see is not None
        self._check()
        self._see(WHOLE, self._now)
        if last:
            if not self._fresh:
                self._now.add_(self._before)
            self._fresh = True
            self._ranks.sum_(self._now)
            if self._ranks.count > 1:
                self._now.div_(self._ranks.count)
            return
        if self._fresh:
            self._before.copy_(self._now)
        else:
            self._before.add_(self._now)
        self._now.zero_()
        self._fresh = False

    def rest(self) -> None:
        """Do nothing: autograd accumulates the gradients in the buffer."""

    def row(self) -> Tensor | None:
        self._check()
        return self._now

    def clear(self, optimizer: Optimizer) -> None:
        self._now.zero_()
        self._fresh = True
        for parameter, view in zip(self._parameters.tensors, self._views, strict=True):
            parameter.grad = view  # restored even after an error

    def _check(self) -> None:
        for index, view in enumerate(self._views):
            if self._parameters.tensors[index].grad is not view:
                name = self._parameters.names[index]
                raise MicroBatchMissed(
                    f"The gradient of {name} is no longer in lb.measure.Flat()'s buffer: zero_grad "
                    "was called, or DistributedDataParallel keeps the gradient in its own buffer "
                    "(gradient_as_bucket_view=True). Do not call zero_grad, since control.step() "
                    "clears the gradients, or use meter=lb.Meter(model)."
                )


def clear_gradients(optimizer: Optimizer) -> None:
    """Set all gradients to None, or call the optimizer's own `zero_grad` method.

    `zero_grad` is called only if the optimizer overrides torch's method. Torch's method opens a
    range for the profiler, too, which takes 3 to 4 % of a small model's step time (94k parameters,
    4 micro-batches of 32 samples).
    """
    if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
