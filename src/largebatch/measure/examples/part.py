"""What one backward shows of its examples: calls of modules as their output's gradient arrives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from largebatch.measure.examples.layer import Layer, SavedTensors
from largebatch.measure.examples.parameter_owners import Owner
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.examples.tally import ExampleSums, WantedSums, join_pieces, one_by_one


@dataclass(eq=False, slots=True, weakref_slot=True)
class Call:
    """One call of a module in a forward.

    Args:
        owner: the module.
        layer: what it computes.
        rows: the examples.
        parts: of how many parts the gradients are told apart: the examples, or groups of them.
        replaced: whether its parameters' gradients come from the examples' gradients.
        shared: whether it was made once for all examples, so that its output's gradient may come
            from several places.
    """

    owner: Owner
    layer: Layer
    rows: int
    parts: int
    replaced: bool = False
    shared: bool = False


@dataclass(slots=True)
class ArrivedGradients:
    """A call whose output's gradient is there."""

    call: Call
    kept: SavedTensors
    delta: Any
    versions: tuple[int, ...] = ()

    def noted(self) -> ArrivedGradients:
        """The same, with what tells whether a user's code overwrites it."""
        return replace(self, versions=self._versions())

    def check(self) -> None:
        """Checks that it is as it was when it came.

        Raises:
            ExamplesRefused: naming the module.
        """
        if self.versions != self._versions():
            raise ExamplesRefused(
                f"The input of {self.call.owner.name} was overwritten before the step's gradient "
                "was complete, and <g_i, g> needs both. Give each micro-batch memory of its own "
                "until control.step()."
            )

    def _versions(self) -> tuple[int, ...]:
        return tuple([x._version for x in self.kept])

    def widened(self) -> ArrivedGradients:
        """In float32 or wider: under autocast input and gradient may differ, and be narrow."""
        wide = self.call.owner.dtype
        deltas = self.delta if isinstance(self.delta, tuple) else (self.delta,)
        narrow = [x for x in (*self.kept, *deltas) if x.dtype is not wide and x.is_floating_point()]
        if not narrow:
            return self

        def cast(x: Tensor) -> Tensor:
            return x.to(wide) if x.is_floating_point() else x

        delta = tuple(map(cast, deltas)) if isinstance(self.delta, tuple) else cast(self.delta)
        return ArrivedGradients(self.call, tuple(map(cast, self.kept)), delta)

    def tally(self, tally: ExampleSums) -> None:
        """Adds its examples' gradients."""
        call, owner = self.call, self.call.owner
        tally.measure(call.layer, owner.module, owner.parameters, self.kept, self.delta, call.parts)


@dataclass(slots=True)
class Part:
    """One backward: sums so far, and calls that have to wait for others of the same parameter.

    Mutable: grows with each call.

    Attributes:
        rows: the examples; 0 before the first call.
        parts: their groups, or their number.
        scalars: whose sum is sum_i |c_i|^2 of the examples' contributions c_i.
        squares: index of a parameter -> sum_i c_i^2.
        gradients: index -> sum_i c_i, where it is checked.
        sizes: index -> sum_i |c_i|^2, where it is checked.
        arrived: what the products need.
        waiting: calls that are added at the end.
        covered: indices of the parameters of all calls.
        finished: groups whose only call was added.
        shared: groups that have a call in `waiting`.
        coarse: whether some of it was seen in half precision.
    """

    rows: int = 0
    parts: int = 0
    scalars: list[Tensor] = field(default_factory=list)
    squares: dict[int, Tensor] = field(default_factory=dict)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    sizes: dict[int, Tensor] = field(default_factory=dict)
    arrived: list[ArrivedGradients] = field(default_factory=list)
    waiting: list[ArrivedGradients] = field(default_factory=list)
    covered: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)
    coarse: bool = False

    def add(self, tally: ExampleSums, indices: Mapping[str, int]) -> None:
        """Adds the tally of a call, or of all calls with one parameter."""
        self.scalars += tally.scalars
        for mine, theirs in (
            (self.squares, tally.squares),
            (self.gradients, tally.gradients),
            (self.sizes, tally.sizes),
        ):
            for name, tensor in theirs.items():
                mine[indices[name]] = tensor

    def finish(self, want: WantedSums, *, check: bool) -> None:
        """Adds what waited: calls that have a parameter in common example by example."""
        groups: dict[int, list[ArrivedGradients]] = {}
        for one in self.waiting:
            groups.setdefault(one.call.owner.group, []).append(one)
        for group in groups.values():
            tally = ExampleSums(want, gradients=False, check=check)
            if len(group) == 1:
                group[0].tally(tally)
                self.add(tally, group[0].call.owner.indices)
            else:
                _together(group, tally)
                self.add(
                    tally, {str(i): i for one in group for i in one.call.owner.indices.values()}
                )
        self.waiting = []

    def sqnorm(self) -> list[Tensor]:
        """Scalars whose sum is sum_i |c_i|^2."""
        return [*self.scalars, *(square.sum() for square in self.squares.values())]


def _together(group: list[ArrivedGradients], tally: ExampleSums) -> None:
    """Several calls with a parameter in common: their gradients are added within each example."""
    alone = [one_by_one(one.call.layer, one.call.parts, one.kept, one.delta) for one in group]
    for of_example in zip(*alone, strict=True):
        sums: dict[str, Tensor] = {}
        for one, (kept, delta) in zip(group, of_example, strict=True):
            layer, owner = one.call.layer, one.call.owner
            pieces = layer.pieces(owner.module, owner.parameters, kept, delta, 1)
            for name, piece in join_pieces(pieces).items():
                key = str(owner.indices[name])
                sums[key] = sums[key] + piece if key in sums else piece
        tally.take(sums.items())


def products_of(arrived: ArrivedGradients, gradients: Mapping[int, Tensor]) -> Tensor:
    """<c_i, g> for each part of one call: [parts]."""
    arrived.check()
    call, owner, kept = arrived.call, arrived.call.owner, arrived.kept
    pairs = ((name, gradients.get(i)) for name, i in owner.indices.items())
    own = {
        n: (g.to_dense() if g.is_sparse else g).to(_dtype(arrived))
        for n, g in pairs
        if g is not None
    }
    along = call.layer.along(owner.module, own, kept)
    if along is not None:
        return along.mul_(arrived.delta).reshape(call.parts, -1).sum(1)
    found: Tensor | None = None
    at: dict[str, int] = {}
    for name, piece in call.layer.pieces(owner.module, own, kept, arrived.delta, call.parts):
        products = piece.reshape(len(piece), -1) @ own[name].flatten()
        found = piece.new_zeros(call.parts) if found is None else found
        start = at.get(name, 0)
        at[name] = start + len(piece)
        found[start : at[name]] += products
    return torch.zeros(call.parts) if found is None else found


def _dtype(arrived: ArrivedGradients) -> torch.dtype:
    delta = arrived.delta[0] if isinstance(arrived.delta, tuple) else arrived.delta
    return delta.dtype
