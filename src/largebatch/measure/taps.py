"""Where the gradient of one part (one micro-batch on one rank) is seen.

`LeafHooks` sees each parameter's gradient as autograd delivers it, before it is added up and before
DistributedDataParallel reduces it. `Detached` gives each backward empty gradients and adds them up
itself. `Flat` does that in one buffer for all parameters.
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
"""see(index of the parameter, gradient); the index `WHOLE` stands for all gradients in one row."""


class Tap(Protocol):
    """What a meter asks of a tap; `begin` and `end` stand around one backward of a measured step.

    Attributes:
        reduces: whether it averages the gradients of a measured step over the ranks itself, so
            that DistributedDataParallel must not.
    """

    @property
    def reduces(self) -> bool: ...

    def bind(self, parameters: Parameters, ranks: Ranks) -> None:
        """Set once which parameters to watch."""
        ...

    def begin(self, see: See) -> None:
        """The gradient of the coming backward goes to `see`."""
        ...

    def end(self, *, last: bool) -> None:
        """The backward is over; `last` of its step or not."""
        ...

    def rest(self) -> None:
        """The coming step is not measured: cost nothing."""
        ...

    def row(self) -> Tensor | None:
        """All gradients in one row, where the tap keeps them so; zeros for one that is not used."""
        ...

    def clear(self, optimizer: Optimizer) -> None:
        """Clears the gradients after the optimizer's step."""
        ...


class LeafHooks:
    """Sees the gradient in a hook before autograd adds it to `parameter.grad`; changes nothing.

    The hook is on the node that accumulates the gradient and not on the tensor, so that a user's
    own `torch.autograd.grad` does not feed it. Exact under DistributedDataParallel, torch.compile
    and activation checkpointing; a parameter that gets two gradients in one backward is refused,
    since the square of their sum is not the sum of their squares.

    Mutable: holds the hooks of one model.
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
                f"{name} got several gradients in one backward (reentrant checkpointing with tied "
                "weights does that), so its micro-batch's gradient was never whole in a hook. "
                "Use meter=lb.Meter(model, tap=lb.measure.Detached()), or "
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
        """Forgets how many gradients each parameter got."""
        self.counts[:] = self._none

    def check_nodes(self) -> None:
        """Checks that a parameter without a gradient is not one whose hook fell off.

        Raises:
            LargeBatchError: naming it.
        """
        for index, tensor in enumerate(self._parameters.tensors):
            if self.counts[index] or not tensor.requires_grad:
                continue
            if get_gradient_edge(tensor).node is not self._nodes[index]:
                raise LargeBatchError(
                    f"{self._parameters.names[index]} was moved to another type or device, which "
                    "takes the hook off it. Move the model first, model.to(device), and build the "
                    "Controller (or lb.attach) after that."
                )

    def _hook(self, index: int, see: See) -> Callable[[tuple[Tensor | None, ...]], None]:
        counts = self.counts

        def hook(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[0]
            if self._active and gradient is not None:  # a user's Function may give None
                counts[index] += 1
                see(index, gradient)

        return hook


class Detached:
    """Gives each backward empty gradients and adds them up afterwards: one gradient copy more.

    For models in which a parameter gets several gradients within one backward, as reentrant
    checkpointing does with tied weights. Under DistributedDataParallel it averages the sum over the
    ranks itself, in one more collective of the gradient's size; a parameter that a step does not
    use then has a zero gradient instead of none.

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
        """Nothing to do: a step that is not measured accumulates as usual."""

    def row(self) -> Tensor | None:
        return None

    def clear(self, optimizer: Optimizer) -> None:
        clear_gradients(optimizer)

    def _average(self) -> None:
        if self._ranks.count == 1:
            return
        for parameter in self._parameters.tensors:  # a rank may have left a parameter unused
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._parameters.tensors if p.grad is not None]
        flat = torch.cat([as_real(g).reshape(-1) for g in gradients])
        self._ranks.sum_(flat.div_(self._ranks.count))
        shares = self._parameters.split_real(flat)
        for gradient, share in zip(gradients, shares, strict=True):
            copy_real(gradient, share)


class Flat:
    """Keeps all gradients in one buffer, so that a part's squared norm is one dot product.

    Fast for small models, slower for large ones. Gradients are views into the buffer: every step
    checks that they still are, and `zero_grad` is the controller's alone. A parameter that a step
    does not use has a zero gradient instead of none, which weight decay and momentum notice.

    Mutable: holds two buffers of the gradient's size.
    """

    reduces = True

    def bind(self, parameters: Parameters, ranks: Ranks) -> None:
        tensors = parameters.tensors
        kinds = {(t.dtype, t.device) for t in tensors}
        if len(kinds) > 1:
            raise ValueError(
                "lb.measure.Flat() needs parameters of one type on one device, got "
                f"{len(kinds)} kinds. Use meter=lb.Meter(model)."
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
        """Nothing to do: autograd adds up in the buffer."""

    def row(self) -> Tensor | None:
        self._check()
        return self._now

    def clear(self, optimizer: Optimizer) -> None:
        self._now.zero_()
        self._fresh = True
        for parameter, view in zip(self._parameters.tensors, self._views, strict=True):
            parameter.grad = view  # also after a step that was refused

    def _check(self) -> None:
        for index, view in enumerate(self._views):
            if self._parameters.tensors[index].grad is not view:
                name = self._parameters.names[index]
                raise MicroBatchMissed(
                    f"The gradient of {name} is no longer in lb.measure.Flat()'s buffer: zero_grad "
                    "was called, or DistributedDataParallel keeps it "
                    "(gradient_as_bucket_view=True). Leave zero_grad to control.step(), or use "
                    "meter=lb.Meter(model)."
                )


def clear_gradients(optimizer: Optimizer) -> None:
    """What `optimizer.zero_grad()` does; that itself is called only where somebody overrode it.

    Around the same assignments torch's own opens a range for the profiler, which costs 3 to 4 % of
    a small model's step (94k parameters, 4 micro-batches of 32).
    """
    if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
