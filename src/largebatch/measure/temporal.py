"""Estimate the gradient's moments from the gradients of two consecutive steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.measurement import GradientMoments
from largebatch.measure.complex_gradients import real_dense
from largebatch.measure.estimate import Parts, moments_of_parts
from largebatch.measure.parameters import Parameters
from largebatch.measure.squares import ROW, squared_norms
from largebatch.measure.statistics import BATCH, Totals
from largebatch.measure.sums import Sums


class TemporalMoments:
    """Estimate the gradient's moments roughly from consecutive steps with one backward call each.

    The gradients of the current and the last step are treated as the gradients of two micro-batches
    of one batch. The estimate is biased, because the weights changed between the two steps. The
    moments have `source="temporal"`. The statistic needs memory for two copies of the gradient and
    uses no hooks.

    >>> import largebatch as lb
    >>> model = torch.nn.Linear(2, 1)
    >>> meter = lb.Meter(model, statistics=[TemporalMoments()])
    >>> meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    >>> sorted(meter.provides), meter.least_parts
    (['moments'], 1)

    Mutable: holds the gradients of the last step.
    """

    name = "moments"
    parts = False
    of_parts = ()
    of_batch = ("temporal product", "temporal last")

    def __init__(self) -> None:
        self._now: dict[int, Tensor] = {}
        self._last: dict[int, Tensor] = {}
        self._last_samples = 0.0
        self._last_factor = 1.0

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._parameters = parameters

    def open(self) -> None:
        """Do nothing, because only the gradients of whole batches are used."""

    def see(self, index: int, gradient: Tensor) -> None:
        """Ignore the gradient of a micro-batch."""

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        """Ignore the end of a micro-batch."""

    def close_batch(self, sums: Sums, *, share: float) -> None:
        product, last = self.of_batch
        gradients = ((i, p.grad) for i, p in enumerate(self._parameters.tensors))
        self._now = {
            index: real_dense(gradient).reshape(-1).to(torch.float32, copy=True)
            for index, gradient in gradients
            if gradient is not None
        }
        products = [
            torch.dot(a, b)
            for index in self._now.keys() & self._last.keys()
            for a, b in zip(self._now[index].split(ROW), self._last[index].split(ROW), strict=True)
        ]
        sums.add(product, *products, coefficient=share)
        sums.add(last, *squared_norms(list(self._last.values())), coefficient=share)

    def read(self, totals: Totals) -> GradientMoments | None:
        product, last = (totals.sums[name] for name in self.of_batch)
        factor, samples = math.sqrt(totals.batch_factor), totals.parts.samples
        moments = None
        if self._last:
            moments = temporal_moments(
                sqnorm=totals.sums[BATCH] * factor**2,
                samples=samples,
                last_sqnorm=last * self._last_factor**2,
                last_samples=self._last_samples,
                product=product * factor * self._last_factor,
            )
        if math.isfinite(totals.sums[BATCH]):  # otherwise the next moments would be NaN
            self._last, self._last_samples, self._last_factor = self._now, samples, factor
        return moments


def temporal_moments(
    *, sqnorm: float, samples: float, last_sqnorm: float, last_samples: float, product: float
) -> GradientMoments | None:
    """Return the moments of two steps' gradients g and h, treated as micro-batches of one batch.

    >>> temporal_moments(
    ...     sqnorm=1.0, samples=4, last_sqnorm=1.0, last_samples=4, product=0.0).variance
    4.0

    Args:
        sqnorm: |g|^2, the squared norm of the current step's gradient. samples: Number of samples
            of the current step.
        last_sqnorm: |h|^2, the squared norm of the last step's gradient.
        last_samples: Number of samples of the last step.
        product: <g, h>, the inner product of the two gradients.
    """
    both = samples + last_samples
    p, q = samples / both, last_samples / both
    return moments_of_parts(
        Parts.proportional(count=2, samples=both, weight=both, source="temporal"),
        mean_sqnorm=p * sqnorm + q * last_sqnorm,
        batch_sqnorm=p * p * sqnorm + q * q * last_sqnorm + 2 * p * q * product,
    )
