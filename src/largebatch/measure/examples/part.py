"""Collect the examples' contributions of one backward call from the module calls."""

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
    """Describe one call of a module in a forward pass.

    Args:
        owner: The module and its measured parameters.
        layer: The object that computes the examples' gradients of the module.
        rows: Number of examples.
        parts: Number of examples, or groups of examples, whose gradients are measured separately.
        replaced: Whether the parameters' gradients are summed from the examples' gradients instead
            of being computed by autograd.
        shared: Whether all examples share the module call, so that the gradient of the module's
            output may come from several operations.
    """

    owner: Owner
    layer: Layer
    rows: int
    parts: int
    replaced: bool = False
    shared: bool = False


@dataclass(slots=True)
class ArrivedGradients:
    """Hold a module call, the module's input tensors and the gradient `delta` of the output."""

    call: Call
    kept: SavedTensors
    delta: Any
    versions: tuple[int, ...] = ()

    def noted(self) -> ArrivedGradients:
        """Return a copy with the versions of the input tensors, to detect overwriting."""
        return replace(self, versions=self._versions())

    def check(self) -> None:
        """Check that the input tensors were not overwritten since `noted`.

        Raises:
            ExamplesRefused: An input tensor of the module was overwritten.
        """
        if self.versions != self._versions():
            raise ExamplesRefused(
                f"The input of the module {self.call.owner.name!r} was overwritten before the "
                "step's gradient g was complete, but the products <g_i, g> need both the input and "
                "g. Do not reuse the memory of a micro-batch before control.step(): x = x.clone()."
            )

    def _versions(self) -> tuple[int, ...]:
        return tuple([x._version for x in self.kept])

    def widened(self) -> ArrivedGradients:
        """Return a copy with float32 or wider tensors, because autocast may use narrower types."""
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
        """Add the examples' gradients of the module call to the sums in `tally`."""
        call, owner = self.call, self.call.owner
        tally.measure(call.layer, owner.module, owner.parameters, self.kept, self.delta, call.parts)


@dataclass(slots=True)
class Part:
    """Collect the sums of one backward call over its examples' contributions c_i.

    Module calls that share a parameter are kept, and added up at the end of the backward call.

    Mutable: grows with each module call.

    Attributes:
        rows: Number of examples; 0 before the first module call. parts: Number of examples, or
            groups of examples, that are measured separately.
        scalars: Scalars whose sum is sum_i |c_i|^2.
        squares: Sum over i of c_i^2 for each parameter, by index.
        gradients: Sum over i of c_i for each checked parameter, by index.
        sizes: Sum over i of |c_i|^2 for each checked parameter, by index.
        arrived: Module calls that are needed to compute inner products. waiting: Module calls that
            are added up at the end of the backward call. covered: Indices of the parameters of all
            module calls. finished: Groups of parameters with exactly one module call, which is
            added up already. shared: Groups of parameters that have a module call in `waiting`.
            coarse: Whether some input tensors or output gradients had half precision.
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
        """Add the sums of one module call, or of all module calls that share a parameter."""
        self.scalars += tally.scalars
        for mine, theirs in (
            (self.squares, tally.squares),
            (self.gradients, tally.gradients),
            (self.sizes, tally.sizes),
        ):
            for name, tensor in theirs.items():
                mine[indices[name]] = tensor

    def finish(self, want: WantedSums, *, check: bool) -> None:
        """Add up the calls in `waiting`, first within each example if parameters are shared."""
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
        """Return scalars whose sum is sum_i |c_i|^2."""
        return [*self.scalars, *(square.sum() for square in self.squares.values())]


def _together(group: list[ArrivedGradients], tally: ExampleSums) -> None:
    """Add several module calls that share a parameter, first within each example."""
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
    """Return the inner products <c_i, g> for the examples i, or groups i, of one module call."""
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
