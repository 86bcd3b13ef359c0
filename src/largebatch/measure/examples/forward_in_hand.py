"""Record the examples and the module calls of the current forward pass of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from largebatch.measure.examples.example_dimension import Layout
from largebatch.measure.examples.layer import Layer, SavedTensors
from largebatch.measure.examples.memory import CallSize, size_of
from largebatch.measure.examples.parameter_owners import Owner
from largebatch.measure.examples.part import Call
from largebatch.measure.examples.refused import ExamplesRefused


class ForwardInHand:
    """Count the calls of each module within a forward pass, and the rows of each example.

    Mutable: each forward pass resets the counts.

    Args:
        groups: Number of groups of examples in each micro-batch; None measures each example
            separately.

    Attributes:
        layout: Number of rows per example of each module call, by module name and number of the
            call; 0 if all examples share the call. A module call without an entry has one row per
            example if the numbers of rows and examples are equal. Otherwise, all examples share the
            module call.
        rows: Number of examples; 0 outside of the model's forward pass.
        sizes: Sizes of each module call in the largest forward pass so far; None before the end of
            the first forward pass.
    """

    def __init__(self, *, groups: int | None) -> None:
        self._groups = groups
        self.layout: Layout = {}
        self.rows = 0
        self.sizes: Sequence[CallSize] | None = None
        self._sized_rows = 0
        self._sizes: list[CallSize] | None = None
        self._counts: dict[str, int] = {}

    def begin(self, rows: int) -> None:
        """Begin a forward pass with `rows` examples."""
        self.rows, self._counts = rows, {}
        self._sizes = [] if rows > self._sized_rows else None

    def end(self, bare: Iterable[tuple[Call, SavedTensors, Tensor]]) -> None:
        """End a forward pass; `bare` are the uses of parameters outside of modules."""
        if self._sizes is not None:
            self.sizes = [*self._sizes, *(size_of(*one) for one in bare)]
            self._sized_rows, self._sizes = self.rows, None
        self.rows = 0

    def parts(self, rows: int) -> int:
        """Return the number of groups: the largest divisor of `rows` that is at most `groups`.

        If the largest divisor is 1, or `groups` is None, the number of groups is `rows`.
        """
        if self._groups is None:
            return rows
        parts = next(k for k in range(min(self._groups, rows), 0, -1) if rows % k == 0)
        return parts if parts > 1 else rows

    def times(self, owner: Owner, length: int) -> int:
        """Return the rows per example in a module's input; 0 if all examples share the input.

        Raises:
            ExamplesRefused: The number of rows per example differs from the number in the first
                training step.
        """
        if not self.rows:
            return 1
        known = self.layout.get((owner.name, self._counts.get(owner.name, 0)))
        if known is None:
            return int(length == self.rows)
        if known and length != known * self.rows:
            raise ExamplesRefused(
                f"The module {owner.name!r} was called with {length} rows for {self.rows} "
                f"examples, but in the first step with {known} rows for each example. The first "
                "dimension of a module's input must be the examples. Measure micro-batches "
                "instead: meter=lb.Meter(model)."
            )
        return known

    def call(
        self, owner: Owner, layer: Layer, kept: SavedTensors, output: Tensor, *, replaced: bool
    ) -> Call:
        """Return the record of a module's call that returned `output`."""
        length = output.shape[0]
        times = self.times(owner, length)
        self._counts[owner.name] = self._counts.get(owner.name, 0) + 1
        rows = self.rows or length
        call = Call(owner, layer, rows, self.parts(rows), replaced, not times)
        if self._sizes is not None:
            self._sizes.append(size_of(call, kept, output))
        return call
