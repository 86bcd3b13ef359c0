"""The noise scale of single coordinates of the gradient, for the coordinate-wise norm test."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.measure.parameters import WHOLE, Parameters
from largebatch.measure.statistics import Totals
from largebatch.measure.sums import Sums


class CoordinateNoiseScale:
    """The largest variance_j / g_j^2 over the coordinates j of the gradient, in samples, or a
    quantile of them; 0/0 is left out, x/0 is infinite.

    The variance of one sample's coordinate is estimated as the trace is (`moments_of_parts`), from
    sum p_i g_ij^2 over the parts, and unbiased for each j; their maximum is biased upwards. Since
    variance_j / g_j^2 rises with sum p_i g_ij^2 / g_j^2, that ratio alone finds the coordinate, and
    its two numbers go to the host with the step's other sums.

    Costs, in measured steps only: one more pass over each part's gradient, memory for up to three
    gradients, a partial sort for a quantile below 1, and with several processes one all-reduce of
    the gradient's size in float32. Under `attach` with several processes it is refused, since their
    numbers of backward calls, and thus of these all-reduces, could differ.

        strict = lb.CoordinateNoiseScale(quantile=0.9)
        meter = lb.Meter(model, statistics=[lb.SquaredNorms(), strict])

    Mutable: holds a buffer of the gradient's size.

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
    of_batch = ("parts of the coordinate", "batch of the coordinate")

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
                f"lb.CoordinateNoiseScale() needs parameters on one device, got {len(devices)}. "
                "Take the norm test as the optimizer sees the gradient: lb.CoordinateNormTest()."
            )
        self._parameters = parameters
        self._device = devices.pop()
        wide = any(tensor.dtype is torch.float64 for tensor in parameters.tensors)
        self._dtype = torch.float64 if wide else torch.float32
        self._total = sum(tensor.numel() for tensor in parameters.tensors)
        self._sum = torch.empty(0, dtype=self._dtype, device=self._device)
        self._views: list[Tensor] = []

    def open(self) -> None:
        if not self._views:
            self._sum = self._sum.new_empty(self._total)
            self._views = self._parameters.split(self._sum)
        self._sum.zero_()
        self._squares.clear()

    def see(self, index: int, gradient: Tensor) -> None:
        # squared at once: autograd and DDP may go on in the same memory before the part is closed
        into = self._sum if index == WHOLE else self._views[index]
        self._squares.append((into, self._wide(gradient).square()))

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        if self._squares:
            into, squares = map(list, zip(*self._squares, strict=True))
            torch._foreach_add_(into, squares, alpha=coefficient)
            self._squares.clear()

    @torch.no_grad()
    def close_batch(self, sums: Sums, *, share: float) -> None:
        if sums.ranks.count > 1:
            sums.ranks.sum_(self._sum)
        batch = torch.cat([self._square_of(at) for at in range(len(self._parameters))])
        chosen = coordinate_at(self._sum, batch, quantile=self.quantile)
        for name, values in zip(self.of_batch, (self._sum, batch), strict=True):
            sums.add(name, values.index_select(0, chosen).squeeze(0), coefficient=share)

    def read(self, totals: Totals) -> float | None:
        """The ratio of the coordinate that was chosen; None where no coordinate has one."""
        of_parts, of_batch = self.of_batch  # both are known when the batch is
        moments = totals.moments(of_parts=of_parts, of_batch=of_batch)
        if moments is None:
            return None
        variance, square = max(moments.variance, 0.0), moments.batch_sqnorm
        if square > 0.0:
            return variance / square
        return math.inf if variance > 0.0 else None

    def _square_of(self, index: int) -> Tensor:
        parameter = self._parameters.tensors[index]
        if parameter.grad is None:
            return self._views[index].new_zeros(parameter.numel())
        return self._wide(parameter.grad).square().flatten()

    def _wide(self, gradient: Tensor) -> Tensor:
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        return dense.detach().to(self._dtype)


def coordinate_at(parts: Tensor, batch: Tensor, *, quantile: float) -> Tensor:
    """The coordinate `[1]` at a quantile of parts / batch, where 0/0 is left out; nothing is read
    by the host.

    >>> parts, batch = torch.tensor([4.0, 0.0, 1.0, 9.0]), torch.tensor([1.0, 0.0, 0.0, 3.0])
    >>> coordinate_at(parts, batch, quantile=1.0), coordinate_at(parts, batch, quantile=0.5)
    (tensor([2]), tensor([0]))

    Args:
        parts, batch: `[P]`, 0 or more.
        quantile: in (0, 1]; of n ratios it is the one of rank ceil(quantile n).
    """
    count = parts.numel()
    ratio = torch.nan_to_num(parts / batch, nan=-1.0, posinf=math.inf)
    known = (ratio >= 0.0).sum()
    # the one of rank ceil(q n) has floor((1 - q) n) above it, at most as many as of all coordinates
    above = ((1.0 - quantile) * known + 1e-9 * known).floor().long()
    kept = ratio.topk(min(math.floor((1.0 - quantile + 1e-9) * count) + 1, count))
    return kept.indices.index_select(0, above.clamp(max=len(kept.indices) - 1).reshape(1))
