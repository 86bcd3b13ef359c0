"""Sum over single examples' gradients while an ordinary backward call runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor, nn

from largebatch.measure.examples.check import Check
from largebatch.measure.examples.deferred_errors import DeferredErrors
from largebatch.measure.examples.example_dimension import Layout
from largebatch.measure.examples.layer import SavedTensors
from largebatch.measure.examples.layer_kinds import coupled
from largebatch.measure.examples.memory import extra_bytes
from largebatch.measure.examples.module_hooks import ModuleHooks
from largebatch.measure.examples.parameter_owners import Owner, dtype_of, owners_of
from largebatch.measure.examples.part import ArrivedGradients, Call, Part, products_of
from largebatch.measure.examples.tally import ExampleSums, WantedSums
from largebatch.measure.parameters import Parameters

NOTHING: Mapping[str, Tensor] = {}


class ExampleGradients:
    """Observe the calls of a model's modules, and add up the contribution of each example.

    An example's contribution to a parameter's gradient is computed from the module's input and the
    gradient of the module's output. The gradients of single examples are not kept. A module of an
    unknown type runs a second time in `torch.func`. If several module calls use one parameter, the
    contributions of all calls are first added up within each example.

    Mutable: holds what was observed in the current step.

    Args:
        groups: Number of groups of consecutive examples in each micro-batch; None measures each
            example separately.
        exact_training: Whether training must stay unchanged to the last bit. If True, every
            parameter's gradient comes from autograd, and errors are raised by `end`, never within
            the user's forward or backward calls.
        batch_norm_rows: Whether batch normalization in training mode is allowed, and each row
            counts as an example.

    Attributes:
        want: Sums that are requested in the current step.
        task: Function that returns the number of the running backward call; None if `begin` is
            called before each backward call.
        part: Sums over the examples of the last backward call.

    Raises:
        LargeBatchError: The examples depend on each other during training (as in batch
            normalization in training mode), or a parameter's gradient cannot be split into the
            examples' contributions.
    """

    def __init__(
        self,
        *,
        groups: int | None = None,
        exact_training: bool = False,
        batch_norm_rows: bool = False,
    ) -> None:
        self._groups, self._exact, self._by_rows = groups, exact_training, batch_norm_rows
        self._errors = DeferredErrors(defer=exact_training)
        self.want = WantedSums()
        self.task: Callable[[], int] | None = None
        self._expected = False
        self._layout: Layout | None = None
        self.part = Part()
        self._parts: dict[int, Part] = {}

    def bind(self, model: nn.Module, parameters: Parameters) -> None:
        """Set the model (without wrappers) and the measured parameters; call `bind` only once.

        Raises:
            ValueError: A module makes the examples depend on each other.
        """
        for name, module in model.named_modules():
            cause = coupled(module, name, batch_norm_rows=self._by_rows)
            if cause is not None:
                raise ValueError(cause)
        tensors, names = parameters.tensors, parameters.names
        owners, groups = owners_of(model, parameters)
        bare = [
            Owner(
                module=model,
                name=names[index],
                indices={"": index},
                parameters={"": tensors[index]},
                known=True,
                group=group,
                dtype=dtype_of(tensors[index], known=True),
            )
            for index, group in groups.items()
        ]
        self._hooks = ModuleHooks(
            model,
            owners,
            bare,
            groups=self._groups,
            layout=self._layout,
            replace=not self._exact,
            batch_norm_rows=self._by_rows,
            begin=self._begin,
            arrive=self._errors.guard(self._arrive),
            errors=self._errors,
        )
        self._live: list[WeakSet[Call]] = [WeakSet() for _ in tensors]
        self._check = Check(parameters)

    def open(self, want: WantedSums) -> None:
        """Begin a training step in which the sums in `want` are requested."""
        self.want = want
        self.begin()
        self._expected = False
        self._errors.clear()
        for calls in self._live:
            calls.clear()
        if want:
            self._hooks.follow(want)
        else:
            self.rest()

    @property
    def layout(self) -> Layout | None:
        """Return the rows per example of each module's call; None before the first forward pass."""
        return self._hooks.forward.layout if self._hooks.looked else None

    def take_layout(self, layout: Layout | None) -> None:
        """Set the rows per example of each module call for the next `bind`."""
        self._layout = layout

    @property
    def extra_bytes(self) -> int | None:
        """Estimate the additional peak memory of the next backward call due to measuring, in bytes.

        The estimate uses the sizes of the largest measured forward pass. The estimate is None until
        the first measured forward pass has ended.
        """
        sizes = self._hooks.forward.sizes
        return None if sizes is None else extra_bytes(sizes, self.want, check=self._check.values)

    def rest(self) -> None:
        """Remove all hooks from the model."""
        self._hooks.rest()

    def begin(self) -> None:
        """Begin a backward call.

        Hooks that run before the backward call or after the end of the backward call, as in the
        user's own `torch.autograd.grad`, are ignored.
        """
        self._expected = True
        self._parts.clear()
        self._check.clear()

    def see(self, index: int, gradient: Tensor) -> None:
        """Note a parameter's gradient in the current backward call."""
        self._check.see(index, gradient)

    def end(self, task: int = 0) -> Part:
        """Return the sums over the examples of a backward call that has ended.

        Args:
            task: Number of the backward call; 0 if `begin` was called before the backward call.

        Raises:
            LargeBatchError: The gradients of the examples do not add up to the gradient of a
                parameter, which the message names.
        """
        self._expected = False
        part = self.part = self._parts.pop(task, Part())
        self._errors.check()
        if part.waiting:
            with self._paused(), torch.no_grad():
                part.finish(self.want, check=self._check.values)
        self._check.compare(part)
        return part

    def forget(self) -> None:
        """Release the sums of the last backward call after the sums were read."""
        self.part = Part()

    def products(self, part: Part, gradients: Mapping[int, Tensor]) -> Tensor:
        """Return the inner products <c_i, g> of the examples' contributions c_i and the gradient g.

        Args:
            part: Sums over the examples of a backward call, in a training step in which inner
                products are requested.
            gradients: Gradient g of each parameter, by the parameter's index.
        """
        with self._paused(), torch.no_grad():
            terms = [products_of(one, gradients) for one in part.arrived]
        return torch.stack(terms).sum(0)

    def _begin(self, call: Call) -> None:
        self._live[call.owner.group].add(call)

    def _arrive(self, call: Call, kept: SavedTensors, delta: object) -> Mapping[str, Tensor]:
        owner, live = call.owner, self._live[call.owner.group]
        live.discard(call)
        if not (self._expected or self.task):
            return self._gradients(ArrivedGradients(call, kept, delta).widened())
        task = 0 if self.task is None else self.task()
        part = self._parts.get(task)
        if part is None:
            part = self._parts[task] = Part(call.rows, call.parts)
        self._check.fits(part, call)
        part.covered.update(owner.indices.values())
        given = ArrivedGradients(call, kept, delta)
        one = given.widened()
        part.coarse |= one is not given
        if self.want.products:
            part.arrived.append(one.noted())
        if live or call.shared or owner.group in part.shared:
            part.shared.add(owner.group)
            part.waiting.append(one)
            return self._gradients(one)
        part.finished.add(owner.group)
        tally = ExampleSums(self.want, gradients=call.replaced, check=self._check.values)
        with self._paused():
            one.tally(tally)
        part.add(tally, owner.indices)
        return tally.gradients

    def _gradients(self, one: ArrivedGradients) -> Mapping[str, Tensor]:
        """Return the parameters' gradients, or an empty mapping if autograd computes them."""
        if not one.call.replaced:
            return NOTHING
        tally = ExampleSums(WantedSums(), gradients=True)
        one.tally(tally)
        return tally.gradients

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Ignore calls of modules within the context, because these modules run a second time."""
        self._hooks.paused = True
        try:
            yield
        finally:
            self._hooks.paused = False
