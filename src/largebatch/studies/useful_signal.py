"""The part of a gradient's squared norm by which the loss falls, for runs with SGD.

The noise of the steps before keeps the weights away from the path that they would take without it.
So it keeps up a part of the squared norm of the true gradient G. Plain SGD changes the loss by

    E[change] = -lr |G|^2 + lr^2 / 2 (G'HG + tr(H Sigma) / B)

in the mean, and noise alone keeps up |G|^2 = lr / 2 tr(H Sigma) / B. If G'HG is left out, then

    useful part = fall of the loss per step / lr,    kept part = sqnorm - useful part

With momentum, lr / (1 - momentum) takes the place of lr. The kept part is proportional to lr / B.
So in a run at S times the batch and r times the learning rate it is r / S times as large.

G'HG counts as kept, too. Near the largest stable learning rate it is not small, and the kept part
comes out too large: the useful part is a lower bound, for the lower end of an interval alone.
Weight decay moves the weights as well and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch.optim import SGD, Optimizer

from largebatch.analysis.bootstrap import Series
from largebatch.analysis.noise import Pairs

REACH = 10
"""Steps to each side over which the loss is averaged."""

EDGE = 5
"""The same for the first and the last step, in the direction in which there are steps."""

SURE = 2.0
"""The kept part counts if it exceeds so many standard errors over the whole probe. The error is
that of the loss over lr, which tells nothing about the kept part at small learning rates."""


def useful_signal(series: Pairs, *, losses: Sequence[float], lrs: Sequence[float]) -> Series | None:
    """Return the useful part of each step's squared norm; None if no kept part is found.

    >>> losses = [1.0 - 0.01 * t for t in range(40)]
    >>> useful = useful_signal([(8.0, 0.5)] * 40, losses=losses, lrs=[0.1] * 40)
    >>> useful[:3].round(2).tolist()
    [0.05, 0.05, 0.05]

    Args:
        series: (variance, sqnorm) of each step, measured at the base batch.
        losses: of the same steps.
        lrs: effective learning rates of the same steps (see `effective_lr`); empty if unknown.
    """
    rates = np.asarray(lrs, dtype=np.float64)
    if len(rates) != len(series) or len(rates) < 2 * EDGE or not (rates > 0.0).all():
        return None
    means = moving_means(losses)
    useful: Series = -np.diff(means) / rates
    kept = float((np.asarray(series)[:, 1] - useful).sum())
    return useful if kept > SURE * _error(losses, means, 1.0 / rates) else None


def moving_means(losses: Sequence[float]) -> Series:
    """Return the mean loss around the start of each step and the end of the last, T + 1 in all.

    It reaches REACH steps to each side, or as many as there are on both sides, but at least EDGE.
    """
    steps = len(losses)
    at = np.arange(steps + 1)
    reach = np.clip(np.minimum(at, steps - at), EDGE, REACH)
    start, stop = np.maximum(at - reach, 0), np.minimum(at + reach, steps)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    means: Series = (sums[stop] - sums[start]) / (stop - start)
    return means


def effective_lr(optimizer: Optimizer) -> float | None:
    """Return lr (1 - dampening) / (1 - momentum) of SGD; None for anything else.

    It is None as well if parameter groups differ in it, or if the optimizer maximizes.

    >>> import torch
    >>> round(effective_lr(SGD([torch.zeros(1)], lr=0.05, momentum=0.9)), 6)
    0.5
    """
    if not isinstance(optimizer, SGD) or any(group["maximize"] for group in optimizer.param_groups):
        return None
    rates = {_effective(group) for group in optimizer.param_groups}
    return rates.pop() if len(rates) == 1 else None


def _effective(group: dict[str, float]) -> float | None:
    momentum, lr = float(group["momentum"]), float(group["lr"])
    if momentum == 0.0:
        return lr
    return lr * (1.0 - float(group["dampening"])) / (1.0 - momentum) if momentum < 1.0 else None


def _error(losses: Sequence[float], means: Series, weights: Series) -> float:
    """Return a bound on the standard error of the sum of `weights` times the steps' falls.

    The sum is that of the first mean, the last one, and those between times the weights' changes.
    """
    away = np.asarray(losses) - (means[:-1] + means[1:]) / 2.0
    change = float(weights[0] + weights[-1] + np.abs(np.diff(weights)).sum())
    return float(np.std(away)) * change / math.sqrt(EDGE)
