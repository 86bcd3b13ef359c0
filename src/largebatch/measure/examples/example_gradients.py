"""Sums over single examples' gradients, collected while an ordinary backward runs."""

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
    """Follows the calls of a model's modules, and adds up what each example contributes.

    Each module's input and the gradient of its output say what an example contributes to the
    gradient; no example's gradient is kept. A module that is not known is run once more by
    `torch.func`, a parameter that several calls share has its contributions added up within each
    example first.

    Mutable: holds what the step in hand has shown so far.

    Args:
        groups: groups of consecutive examples in each micro-batch; None for each example alone.
        exact_training: whether training stays the same to the last bit: every parameter's gradient
            comes from autograd, and an error is raised by `end`, never within the user's calls.
        batch_norm_rows: whether batch normalization over the batch is measured by rows.

    Attributes:
        want: what is asked for in the step in hand.
        task: returns the number of the running backward, if `begin` does not announce each one.
        part: what the last backward has shown.

    Raises:
        LargeBatchError: while training, for examples that depend on each other (batch normalization
            in training mode) and for a parameter whose gradient cannot be told apart by examples.
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
        """Set once which parameters of which bare model to measure.

        Raises:
            ValueError: a module in which the examples depend on each other.
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
        """Begin a step in which this is wanted."""
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
        """Return which rows of each call are its examples; None before the first forward."""
        return self._hooks.forward.layout if self._hooks.looked else None

    def take_layout(self, layout: Layout | None) -> None:
        """Take the layout that a copy of the model showed, from the next `bind` on."""
        self._layout = layout

    @property
    def extra_bytes(self) -> int | None:
        """Estimate by how many bytes measuring raises the peak of the coming backward, from the
        sizes of the largest measured forward; None before the first one is over."""
        sizes = self._hooks.forward.sizes
        return None if sizes is None else extra_bytes(sizes, self.want, check=self._check.values)

    def rest(self) -> None:
        """Take every hook off the model."""
        self._hooks.rest()

    def begin(self) -> None:
        """Begin a backward.

        What a user's own `torch.autograd.grad` shows before it or after its end is ignored.
        """
        self._expected = True
        self._parts.clear()
        self._check.clear()

    def see(self, index: int, gradient: Tensor) -> None:
        """Note a parameter's gradient in the backward in hand."""
        self._check.see(index, gradient)

    def end(self, task: int = 0) -> Part:
        """Return what a backward has shown.

        Args:
            task: the backward's number, if `task` is set.

        Raises:
            LargeBatchError: naming a parameter whose gradient is not that of its examples.
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
        """Release what the last backward has shown, once it was looked at."""
        self.part = Part()

    def products(self, part: Part, gradients: Mapping[int, Tensor]) -> Tensor:
        """<c_i, g> for the contributions c_i of a backward's examples, or groups: [parts].

        Args:
            part: of a step in which products are wanted.
            gradients: index of a parameter -> its part of g.
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
        """The parameters' gradients alone, where autograd was not asked for them."""
        if not one.call.replaced:
            return NOTHING
        tally = ExampleSums(WantedSums(), gradients=True)
        one.tally(tally)
        return tally.gradients

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """A module that is run once more is not followed."""
        self._hooks.paused = True
        try:
            yield
        finally:
            self._hooks.paused = False
