"""Measure the moments of the raw gradient: its variance and its squared norm."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.measurement import GradientMoments
from largebatch.measure.parameters import Parameters
from largebatch.measure.squares import squared_norm, squarer
from largebatch.measure.statistics import BATCH, Totals
from largebatch.measure.sums import Sums


class SquaredNorms:
    """Measure the moments of the raw gradient from squared norms of the micro-batches' gradients.

    With k micro-batch gradients g_i of B / k samples each and the batch's gradient g, the variance
    of one sample's gradient is estimated by B / (k - 1) * (mean_i |g_i|^2 - |g|^2).

    >>> import largebatch as lb
    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> meter = lb.Meter(model, statistics=[SquaredNorms()])
    >>> meter.bind(torch.optim.SGD(model.parameters(), lr=0.1)), sorted(meter.provides)
    (None, ['moments'])

    Mutable: holds the scalars of the current micro-batch.

    Reference: Johnson et al., AdaScale SGD, 2020, arXiv 2007.05105; McCandlish et al., An Empirical
    Model of Large-Batch Training, 2018, arXiv 1812.06162, A.1.
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
        # The last function is for the index WHOLE, which is -1.
        self._squares = [*map(squarer, parameters.tensors), squared_norm]

    def open(self) -> None:
        self._part.clear()

    def see(self, index: int, gradient: Tensor) -> None:
        self._part.append(self._squares[index](gradient))

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        sums.add(self.name, *self._part, coefficient=coefficient)
        self._part.clear()

    def close_batch(self, sums: Sums, *, share: float) -> None:
        """Do nothing: the meter adds the batch's squared norm to the sums in every step."""

    def read(self, totals: Totals) -> GradientMoments | None:
        return totals.moments(of_parts=self.name, of_batch=BATCH)
