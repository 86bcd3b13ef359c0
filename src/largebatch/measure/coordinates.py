"""Measure the noise scale of single coordinates of the gradient, for `CoordinateNormTest`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.measurement import noise_scale
from largebatch.measure.complex_gradients import real_dense
from largebatch.measure.estimate import moments_of_parts
from largebatch.measure.parameters import WHOLE, Parameters
from largebatch.measure.statistics import Totals
from largebatch.measure.sums import Sums


class CoordinateNoiseScale:
    """Measure the largest ratio variance_j / g_j^2 over the gradient's coordinates j, in samples.

    A quantile of the ratios can be measured instead of the largest ratio. A ratio 0/0 is left out,
    and a ratio x/0 is infinite.

    The variance of one sample's coordinate j is estimated by the formula of `moments_of_parts` from
    L_j = sum_i p_i * g_ij^2 over the micro-batches i with the shares p_i of the step's gradient.
    The variance estimate is unbiased for each coordinate j, but the maximum ratio over all
    coordinates j is biased upwards. The ratio variance_j / g_j^2 falls as g_j^2 / L_j rises, so
    only the minimum of g_j^2 / L_j is computed.

    The real and the imaginary part of a complex element are two coordinates.

    The overhead of a measured step is one additional read of each micro-batch's gradient, memory
    for up to three gradients, two reads of the ratios for a quantile below 1, and a few host syncs.
    With several processes, there is one additional all-reduce of the gradient's size in float32.
    The additional all-reduce comes after the step's usual all-reduce, because the usual all-reduce
    detects ranks that disagree about what is measured.

    With `examples=lb.PerExample()`, single examples replace the micro-batches.

    >>> import largebatch as lb
    >>> model = torch.nn.Linear(2, 1)
    >>> meter = lb.Meter(model, statistics=[CoordinateNoiseScale(quantile=0.9)])
    >>> meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    >>> sorted(meter.provides)
    ['coordinate_noise_scale']

    Mutable: holds two buffers of the gradient's size.

    Args:
        quantile: Fraction of the coordinates whose ratio is at most the returned ratio, in (0, 1].
            A quantile of 1 returns the largest ratio.

    Raises:
        ValueError: The quantile is outside (0, 1], or the parameters are on several devices.

    Reference: Lau et al., AdAdaGrad, 2024, arXiv 2402.11215, for the maximum.
    """

    name = "coordinate_noise_scale"
    parts = True
    of_parts = ()
    of_batch = ()

    def __init__(self, *, quantile: float = 1.0) -> None:
        if not 0.0 < quantile <= 1.0:
            raise ValueError(
                f"quantile={quantile!r} was given, but a quantile must be above 0 and at most 1. "
                "Pass, for example, lb.measure.CoordinateNoiseScale(quantile=0.9)."
            )
        self.quantile = quantile
        self._squares: list[tuple[Tensor, Tensor]] = []

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        devices = {tensor.device for tensor in parameters.tensors}
        if len(devices) > 1:
            raise ValueError(
                "lb.measure.CoordinateNoiseScale() requires all parameters on one device, but they "
                f"are on {len(devices)} devices. Use the norm test of the preconditioned gradient, "
                "which does not need this statistic: lb.rules.CoordinateNormTest()."
            )
        self._parameters = parameters
        self._device = devices.pop()
        self._dtype = parameters.real_dtype
        self._total = parameters.real_numbers
        self._sum = torch.empty(0, dtype=self._dtype, device=self._device)
        self._views: list[Tensor] = []

    def open(self) -> None:
        if not self._views:
            self._sum = self._sum.new_empty(self._total)
            self._views = self._parameters.split_real(self._sum)
        self._sum.zero_()
        self._squares.clear()

    def see(self, index: int, gradient: Tensor) -> None:
        # The gradient is squared immediately, because autograd and DDP may overwrite the gradient
        # before the micro-batch ends.
        self.add(index, self._wide(gradient).square())

    def add(self, index: int, squares: Tensor) -> None:
        """Add the squared coordinates of one parameter's gradient in the current micro-batch."""
        into = self._sum.view(squares.shape) if index == WHOLE else self._views[index]
        self._squares.append((into, squares))

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        if self._squares:
            into, squares = map(list, zip(*self._squares, strict=True))
            torch._foreach_add_(into, squares, alpha=coefficient)
            self._squares.clear()

    @torch.no_grad()
    def close_batch(self, sums: Sums, *, share: float) -> None:
        self._ranks = sums.ranks
        batch = torch.cat([self._gradient_of(at) for at in range(len(self._parameters))])
        self._batch = batch.square_()

    @torch.no_grad()
    def read(self, totals: Totals) -> float | None:
        """Return the noise scale at the quantile, in samples; None if no coordinate has a ratio."""
        ratios = self._batch.div_(self._ranks.sum_(self._sum))
        ratio = float(ratio_at(ratios, quantile=self.quantile))
        moments = moments_of_parts(
            totals.parts,
            mean_sqnorm=totals.part_factor / totals.parts.weight,
            batch_sqnorm=ratio * totals.batch_factor,
        )
        if moments is None or ratio < 0.0:
            return None
        return noise_scale(variance=moments.variance, sqnorm=moments.batch_sqnorm)

    def _gradient_of(self, index: int) -> Tensor:
        parameter = self._parameters.tensors[index]
        if parameter.grad is None:
            return torch.zeros_like(self._views[index]).flatten()
        return self._wide(parameter.grad).flatten()

    def _wide(self, gradient: Tensor) -> Tensor:
        return real_dense(gradient).to(self._dtype)


def ratio_at(ratio: Tensor, *, quantile: float) -> Tensor:
    """Return the ratio that the fraction `quantile` of the ratios reach; -1 if no ratio is finite.

    A quantile of 1 gives the smallest ratio. The function overwrites the tensor `ratio`.

    >>> ratio_at(torch.tensor([0.25, torch.nan, 0.0, 0.5]), quantile=1.0)
    tensor(0.)
    >>> ratio_at(torch.tensor([0.25, torch.nan, 0.0, 0.5]), quantile=0.5)
    tensor(0.2500)

    Args:
        ratio: Ratios `[P]`, 0 or more. A value that is not finite is left out.
        quantile: Fraction q in (0, 1]. Of n finite ratios in falling order, the ratio with the
            number ceil(q * n) is returned.
    """
    ratio = ratio.nan_to_num_(nan=math.inf, posinf=math.inf)
    found = ratio.min() if quantile == 1.0 else _ranked(ratio, part=1.0 - quantile + 1e-9)
    return torch.where(found.isfinite(), found, -1.0)


def _ranked(ratio: Tensor, *, part: float) -> Tensor:
    """Return element floor(part * n), counted from 0, of n finite ratios in rising order.

    If there is no finite ratio, the result is infinite. The bits of a float that is not negative
    rise with its value. So the ratios are counted in bins by their first 16 bits, and only the bin
    of the requested element is sorted.
    """
    bits = ratio.view(torch.int64 if ratio.dtype is torch.float64 else torch.int32)
    bins = bits >> (8 * ratio.element_size() - 16)
    up_to = torch.bincount(bins).cumsum(0)
    finite = int(torch.count_nonzero(ratio < math.inf))
    rank = min(int(part * finite), max(finite - 1, 0))
    at = int((up_to <= rank).sum())
    below = int(up_to[at - 1]) if at else 0
    return ratio[bins == at].sort().values[rank - below]
