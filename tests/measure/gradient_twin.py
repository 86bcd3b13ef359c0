"""The moments of a step by the definition: one `autograd.grad` a micro-batch, all in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Loss = Callable[..., Tensor]


@dataclass
class Twin:
    """The moments, and the gradient of the weighted mean loss (None where nothing is used)."""

    batch_sqnorm: float
    variance: float
    sqnorm: float
    loss: float
    gradient: list[Tensor | None]


def part_gradients(
    model: nn.Module, loss_fn: Loss, micro_batches: Sequence[tuple[Tensor, ...]]
) -> tuple[list[list[Tensor | None]], list[float]]:
    """The gradient of each micro-batch's mean loss at the model's weights, and the losses."""
    twin = copy.deepcopy(model).double()
    parameters = [p for p in twin.parameters() if p.requires_grad]
    gradients, losses = [], []
    for micro_batch in micro_batches:
        wide = [t.double() if t.is_floating_point() else t for t in micro_batch]
        loss = loss_fn(twin, *wide)
        losses.append(loss.item())
        gradients.append(list(torch.autograd.grad(loss, parameters, allow_unused=True)))
    return gradients, losses


def twin_of(
    model: nn.Module,
    loss_fn: Loss,
    micro_batches: Sequence[tuple[Tensor, ...]],
    *,
    weights: Sequence[float] | None = None,
    divide_by: Sequence[Tensor] | None = None,
) -> Twin:
    """Moments from the definition, with v |g_i|^2 = |G|^2 + v / w_i solved by hand.

    Args:
        weights: of the micro-batches; their samples by default.
        divide_by: what each parameter's gradient is divided by before it is squared.
    """
    samples = [len(micro_batch[0]) for micro_batch in micro_batches]
    w = [float(s) for s in (weights or samples)]
    total, count = sum(w), len(w)
    gradients, losses = part_gradients(model, loss_fn, micro_batches)
    mean: list[Tensor | None] = []
    for column in zip(*gradients, strict=True):
        terms = [a / total * g for a, g in zip(w, column, strict=True) if g is not None]
        mean.append(sum(terms[1:], terms[0]) if terms else None)
    square = [
        sum(
            ((g / d) ** 2).sum().item()
            for g, d in zip(part, divide_by or [torch.ones(())] * len(part), strict=True)
            if g is not None
        )
        for part in [*gradients, mean]
    ]
    of_parts = sum(a * s for a, s in zip(w, square[:-1], strict=True)) / total
    # v of one unit of weight: E[of_parts - square[-1]] = v (count / total - 1 / total)
    of_unit = (of_parts - square[-1]) * total / (count - 1) if count > 1 else math.nan
    return Twin(
        batch_sqnorm=square[-1],
        variance=of_unit * sum(samples) / total,
        sqnorm=square[-1] - of_unit / total,
        loss=sum(a * x for a, x in zip(w, losses, strict=True)) / total,
        gradient=mean,
    )


def rows_of_parts(
    model: nn.Module, loss_fn: Loss, micro_batches: Sequence[tuple[Tensor, ...]]
) -> list[list[float]]:
    """Each micro-batch's whole gradient: [K, parameters]."""
    parts, _ = part_gradients(model, loss_fn, micro_batches)
    return [torch.cat([g.flatten() for g in part if g is not None]).tolist() for part in parts]


def coordinate_ratios(rows: Any, sizes: Any) -> list[float]:
    """variance_j / g_j^2 of each coordinate that has one, rising: parts `[K, P]` of so many samples
    each, with v_j = sum w_i (g_ij - g_j)^2 / (K - 1) for one sample."""
    rows, w = np.asarray(rows, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    mean = w @ rows / w.sum()
    variance = (w[:, None] * (rows - mean) ** 2).sum(axis=0) / (len(w) - 1)
    pairs = zip(variance.tolist(), (mean**2).tolist(), strict=True)
    return sorted(v / m if m > 0 else math.inf for v, m in pairs if v > 0 or m > 0)


def coordinate_noise_scale(rows: Any, sizes: Any, *, quantile: float) -> float | None:
    """The ratio of rank ceil(quantile n)."""
    known = coordinate_ratios(rows, sizes)
    return known[math.ceil(quantile * len(known) - 1e-9) - 1] if known else None
