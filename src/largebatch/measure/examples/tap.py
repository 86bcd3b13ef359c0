"""Sees single examples' gradients while an ordinary backward runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor, nn

from largebatch.measure.examples.calls import Calls
from largebatch.measure.examples.check import Check
from largebatch.measure.examples.kinds import coupled
from largebatch.measure.examples.layer import Kept
from largebatch.measure.examples.owners import Owner, dtype_of, owners_of
from largebatch.measure.examples.part import Arrived, Call, Part, products_of
from largebatch.measure.examples.tally import Tally, Want
from largebatch.measure.parameters import Parameters

NOTHING: Mapping[str, Tensor] = {}


class PerExample:
    """Exact statistics of single examples' gradients, from ordinary backward calls.

        meter = lb.Meter(model, examples=lb.PerExample())

    Each module's input and the gradient of its output say what each example contributes to the
    gradient; no example's gradient is kept. A module that is not known is run once more by
    `torch.func`, a parameter that several calls share has its contributions added up within each
    example first. The first dimension of the model's first tensor argument is the examples, and the
    loss is a mean over them: an example's gradient is its share of the micro-batch's, times their
    number. Where a mean is over tokens, an example is a sequence, and all of a micro-batch count
    alike. A sum of losses in place of a mean multiplies every gradient by the number of examples:
    noise scale and gain stay as they are.

    In the first measured step the model runs twice more on its input, in evaluation mode, to see
    where the examples are, and what was found is compared with each parameter's gradient.

    Mutable: holds what the step in hand has shown so far.

    Args:
        groups: None takes each example by itself. A number takes so many groups of consecutive
            examples in each micro-batch, or the largest smaller number that divides it: cheaper,
            and as unbiased, with the uncertainty of so few parts.

    Attributes:
        want: what is asked for in the step in hand.
        task: tells backward calls apart by number, where `begin` does not announce them.
        part: what the last backward has shown.

    Raises:
        ValueError: groups that are no whole number, or fewer than two.
        LargeBatchError: while training, for examples that depend on each other (batch normalization
            in training mode) and for a parameter whose gradient cannot be told apart by examples.
    """

    def __init__(self, *, groups: int | None = None) -> None:
        if groups is not None and not (isinstance(groups, int) and groups >= 2):
            raise ValueError(
                "groups is a whole number, at least 2, since of one group no variance is known; "
                f"got groups={groups!r}. lb.PerExample(groups=4); for every example by itself: "
                "lb.PerExample()."
            )
        self._groups = groups
        self.want = Want()
        self.task: Callable[[], int] | None = None
        self._expected = False
        self.part = Part()
        self._parts: dict[int, Part] = {}

    @property
    def groups(self) -> int | None:
        """Groups of examples in each micro-batch; None for each example by itself."""
        return self._groups

    def bind(self, model: nn.Module, parameters: Parameters) -> None:
        """Told once which parameters of which bare model to measure.

        Raises:
            ValueError: a module in which the examples depend on each other.
        """
        for name, module in model.named_modules():
            cause = coupled(module, name)
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
        self._calls = Calls(
            model, owners, bare, groups=self._groups, begin=self._begin, arrive=self._arrive
        )
        self._live: list[WeakSet[Call]] = [WeakSet() for _ in tensors]
        self._check = Check(parameters)

    def open(self, want: Want) -> None:
        """A step begins in which this is wanted."""
        self.want = want
        self.begin()
        self._expected = False
        for calls in self._live:
            calls.clear()
        if want:
            self._calls.follow(want)
        else:
            self.rest()

    def rest(self) -> None:
        """Takes every hook off the model."""
        self._calls.rest()

    def begin(self) -> None:
        """A backward begins: what came before or comes after its end, by a user's own
        `torch.autograd.grad`, is none of it."""
        self._expected = True
        self._parts.clear()
        self._check.clear()

    def see(self, index: int, gradient: Tensor) -> None:
        """A parameter's gradient of the backward in hand."""
        self._check.see(index, gradient)

    def end(self, task: int = 0) -> Part:
        """What a backward has shown.

        Args:
            task: of autograd's engine, where `task` tells several apart.

        Raises:
            LargeBatchError: naming a parameter whose gradient is not that of its examples.
        """
        self._expected = False
        part = self.part = self._parts.pop(task, Part())
        if part.waiting:
            with self._paused(), torch.no_grad():
                part.finish(self.want, check=self._check.values)
        self._check.compare(part)
        return part

    def forget(self) -> None:
        """Lets go of what the last backward has shown, once it was looked at."""
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

    def _arrive(self, call: Call, kept: Kept, delta: object) -> Mapping[str, Tensor]:
        owner, live = call.owner, self._live[call.owner.group]
        live.discard(call)
        if not (self._expected or self.task):
            return self._gradients(Arrived(call, kept, delta).widened())
        task = 0 if self.task is None else self.task()
        part = self._parts.get(task)
        if part is None:
            part = self._parts[task] = Part(call.rows, call.parts)
        self._check.fits(part, call)
        part.covered.update(owner.indices.values())
        given = Arrived(call, kept, delta)
        one = given.widened()
        part.coarse |= one is not given
        if self.want.products:
            part.arrived.append(one.noted())
        if live or call.shared or owner.group in part.shared:
            part.shared.add(owner.group)
            part.waiting.append(one)
            return self._gradients(one)
        part.finished.add(owner.group)
        tally = Tally(self.want, gradients=call.replaced or self._check.values)
        self._calls.paused = True
        one.tally(tally)
        self._calls.paused = False
        part.add(tally, owner.indices)
        return tally.gradients

    def _gradients(self, one: Arrived) -> Mapping[str, Tensor]:
        """The parameters' gradients alone, where autograd was not asked for them."""
        if not one.call.replaced:
            return NOTHING
        tally = Tally(Want(), gradients=True)
        one.tally(tally)
        return tally.gradients

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """A module that is run once more is not followed."""
        self._calls.paused = True
        try:
            yield
        finally:
            self._calls.paused = False
