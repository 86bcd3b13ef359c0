"""One forward of the model: its examples, and the calls of its modules so far."""

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
    """Counts the calls of each module within a forward, and says which rows are examples.

    Mutable: begins anew with each forward.

    Args:
        groups: of how many parts gradients are told apart; None is the examples.

    Attributes:
        layout: (module, how often it was called before in a forward) -> rows of it for each
            example, 0 where all examples share it. A call that is not in it has one row for each
            example, or is shared where it has another number of rows.
        rows: the examples; 0 outside of the model's forward.
        sizes: of each call in the forward with the most examples so far; None before its end.
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
        """The model was called with so many examples."""
        self.rows, self._counts = rows, {}
        self._sizes = [] if rows > self._sized_rows else None

    def end(self, bare: Iterable[tuple[Call, SavedTensors, Tensor]]) -> None:
        """The model has returned; `bare` are the calls of parameters outside of its modules."""
        if self._sizes is not None:
            self.sizes = [*self._sizes, *(size_of(*one) for one in bare)]
            self._sized_rows, self._sizes = self.rows, None
        self.rows = 0

    def parts(self, rows: int) -> int:
        """The largest number of equal parts that is wanted at most; all where only one is."""
        if self._groups is None:
            return rows
        parts = next(k for k in range(min(self._groups, rows), 0, -1) if rows % k == 0)
        return parts if parts > 1 else rows

    def times(self, owner: Owner, length: int) -> int:
        """Rows of a module's input for each example; 0 where all examples share it.

        Raises:
            ExamplesRefused: another number of rows than in the first step.
        """
        if not self.rows:
            return 1
        known = self.layout.get((owner.name, self._counts.get(owner.name, 0)))
        if known is None:
            return int(length == self.rows)
        if known and length != known * self.rows:
            raise ExamplesRefused(
                f"{owner.name} was called with {length} rows for {self.rows} examples, where it "
                f"had {known} for each in the first step. A module's first dimension must be the "
                "examples; measure micro-batches instead: meter=lb.Meter(model)."
            )
        return known

    def call(
        self, owner: Owner, layer: Layer, kept: SavedTensors, output: Tensor, *, replaced: bool
    ) -> Call:
        """A module was called, and has returned this."""
        length = output.shape[0]
        times = self.times(owner, length)
        self._counts[owner.name] = self._counts.get(owner.name, 0) + 1
        rows = self.rows or length
        call = Call(owner, layer, rows, self.parts(rows), replaced, not times)
        if self._sizes is not None:
            self._sizes.append(size_of(call, kept, output))
        return call
