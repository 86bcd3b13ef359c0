"""Moments without parts: two steps' gradients taken for two parts of one batch."""

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
    """A rough estimate for one process with one backward a step: this step's gradient and the last
    one's are taken as two parts of one batch.

    It is biased, since the weights moved between the two; its moments say `source="temporal"`.
    Costs two copies of the gradient and no hooks.

    Mutable: holds the last step's gradients.
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
        """Nothing to prepare: it looks at whole batches."""

    def see(self, index: int, gradient: Tensor) -> None:
        """Looks at no part."""

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        """Looks at no part."""

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
        if math.isfinite(totals.sums[BATCH]):  # else it would spoil the next step, too
            self._last, self._last_samples, self._last_factor = self._now, samples, factor
        return moments


def temporal_moments(
    *, sqnorm: float, samples: float, last_sqnorm: float, last_samples: float, product: float
) -> GradientMoments | None:
    """Moments from two whole gradients g and h of n and m samples, as two parts of one batch.

    >>> temporal_moments(
    ...     sqnorm=1.0, samples=4, last_sqnorm=1.0, last_samples=4, product=0.0).variance
    4.0

    Args:
        sqnorm, samples: |g|^2 and n of this step.
        last_sqnorm, last_samples: |h|^2 and m of the step before.
        product: <g, h>.
    """
    both = samples + last_samples
    p, q = samples / both, last_samples / both
    return moments_of_parts(
        Parts.proportional(count=2, samples=both, weight=both, source="temporal"),
        mean_sqnorm=p * sqnorm + q * last_sqnorm,
        batch_sqnorm=p * p * sqnorm + q * q * last_sqnorm + 2 * p * q * product,
    )
