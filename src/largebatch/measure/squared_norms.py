"""The moments of the bare gradient."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.measurement import GradientMoments
from largebatch.measure.parameters import Parameters
from largebatch.measure.squares import squared_norm, squarer
from largebatch.measure.statistics import BATCH, Totals
from largebatch.measure.sums import Sums


class SquaredNorms:
    """The moments of the bare gradient, from the squared norms of the parts and of the batch.

    Mutable: holds the scalars of the part in hand.
    """

    name = "moments"
    parts = True
    of_parts = ("moments",)
    of_batch = ()

    def __init__(self) -> None:
        self._part: list[Tensor] = []

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        # the last one is for the index WHOLE, -1
        self._squares = [*map(squarer, parameters.tensors), squared_norm]

    def open(self) -> None:
        self._part.clear()

    def see(self, index: int, gradient: Tensor) -> None:
        self._part.append(self._squares[index](gradient))

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        sums.add(self.name, *self._part, coefficient=coefficient)
        self._part.clear()

    def close_batch(self, sums: Sums, *, share: float) -> None:
        """The batch's squared norm is in the sums already: every step needs it."""

    def read(self, totals: Totals) -> GradientMoments | None:
        return totals.moments(of_parts=self.name, of_batch=BATCH)
