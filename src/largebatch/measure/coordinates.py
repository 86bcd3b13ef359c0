"""The noise scale of single coordinates of the gradient, for the coordinate-wise norm test."""

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
    """The largest variance_j / g_j^2 over the coordinates j of the gradient, in samples, or a
    quantile of them; 0/0 is left out, x/0 is infinite.

    The variance of one sample's coordinate is estimated as the trace is (`moments_of_parts`), from
    L_j = sum p_i g_ij^2 over the parts, and unbiased for each j; their maximum is biased upwards.
    Since variance_j / g_j^2 falls as g_j^2 / L_j rises, only that ratio's minimum is looked for.

    A complex element is two coordinates, its real and its imaginary part.

    Costs, in measured steps only: one more pass over each part's gradient, memory for up to three
    gradients, two passes over the ratios for a quantile below 1, a few host syncs, and with several
    processes one all-reduce of the gradient's size in float32. That one comes after the step's own
    collective, in which ranks that disagree about what is measured are told.

        strict = lb.measure.CoordinateNoiseScale(quantile=0.9)
        meter = lb.Meter(model, statistics=[lb.measure.SquaredNorms(), strict])

    With `examples=lb.PerExample()` the parts are single examples.

    Mutable: holds two buffers of the gradient's size.

    Args:
        quantile: in (0, 1]; 1 is the maximum. The least ratio that so large a part of the
            coordinates with a ratio does not exceed.

    Raises:
        ValueError: a quantile outside (0, 1].

    Reference: Lau et al., AdAdaGrad, 2024, arXiv 2402.11215, for the maximum.
    """

    name = "coordinate_noise_scale"
    parts = True
    of_parts = ()
    of_batch = ()

    def __init__(self, *, quantile: float = 1.0) -> None:
        if not 0.0 < quantile <= 1.0:
            raise ValueError(
                "The quantile is in (0, 1], as in CoordinateNoiseScale(quantile=0.9); got "
                f"{quantile!r}."
            )
        self.quantile = quantile
        self._squares: list[tuple[Tensor, Tensor]] = []

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        devices = {tensor.device for tensor in parameters.tensors}
        if len(devices) > 1:
            raise ValueError(
                "lb.measure.CoordinateNoiseScale() needs parameters on one device, got "
                f"{len(devices)}. Take the norm test as the optimizer sees the gradient: "
                "lb.rules.CoordinateNormTest()."
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
        # squared at once: autograd and DDP may go on in the same memory before the part is closed
        self.add(index, self._wide(gradient).square())

    def add(self, index: int, squares: Tensor) -> None:
        """Squares of one parameter's gradient in the part in hand, coordinate by coordinate."""
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
        """The noise scale of the coordinate that is found; None where no coordinate has one."""
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
    """The least ratio for a quantile of 1, else the one that so large a part of them does not fall
    below; -1 where there is none. Changes its argument.

    >>> ratio_at(torch.tensor([0.25, torch.nan, 0.0, 0.5]), quantile=1.0)
    tensor(0.)
    >>> ratio_at(torch.tensor([0.25, torch.nan, 0.0, 0.5]), quantile=0.5)
    tensor(0.2500)

    Args:
        ratio: `[P]`, 0 or more; what is not finite is none.
        quantile: in (0, 1]; of n ratios it is the one of rank ceil(quantile n) from above.
    """
    ratio = ratio.nan_to_num_(nan=math.inf, posinf=math.inf)
    found = ratio.min() if quantile == 1.0 else _ranked(ratio, part=1.0 - quantile + 1e-9)
    return torch.where(found.isfinite(), found, -1.0)


def _ranked(ratio: Tensor, *, part: float) -> Tensor:
    """Of n finite ratios the one with floor(part n) before it as they rise; inf where n is 0.

    From 0 on a float's bits rise with it: the first 16 of them are counted, and only those in the
    bin with the rank are sorted.
    """
    bits = ratio.view(torch.int64 if ratio.dtype is torch.float64 else torch.int32)
    bins = bits >> (8 * ratio.element_size() - 16)
    up_to = torch.bincount(bins).cumsum(0)
    finite = int(torch.count_nonzero(ratio < math.inf))
    rank = min(int(part * finite), max(finite - 1, 0))
    at = int((up_to <= rank).sum())
    below = int(up_to[at - 1]) if at else 0
    return ratio[bins == at].sort().values[rank - below]
