"""Compute the part of the gradient's squared norm that lowers the loss, for runs with SGD.

The noise of earlier steps keeps the weights away from the path that the weights would take without
noise. A part of the squared norm of the true gradient G is therefore due to noise. Plain SGD
changes the mean loss by

    E[change] = -lr * |G|^2 + lr^2 / 2 * (G'HG + tr(H Sigma) / B)

and the part of |G|^2 that is due to noise is lr / 2 * tr(H Sigma) / B. If G'HG is neglected, the
two parts are

    useful part = fall of the loss per step / lr,    noise part = sqnorm - useful part

With momentum, lr / (1 - momentum) replaces lr. The noise part is proportional to lr / B. At S times
the batch size and r times the learning rate, the noise part is therefore multiplied by r / S.

The formula for the useful part counts G'HG as a part of the noise part. Near the largest stable
learning rate, G'HG is not small, so the computed noise part is too large. The useful part is
therefore a lower bound, and it is used only for the lower bound of an interval. The effect of
weight decay, which also moves the weights, is neglected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch.optim import SGD, Optimizer

from largebatch.analysis.bootstrap import Series
from largebatch.analysis.noise import Pairs

REACH = 10
"""Number of steps to each side over which the loss is averaged."""

EDGE = 5
"""Number of steps over which the loss is averaged at the first and at the last step, on one side
only.
"""

SURE = 2.0
"""Smallest noise part over the whole probe, in standard errors, that counts as detected. The
standard error is the standard error of the loss divided by lr, so at a small learning rate no noise
part is detected.
"""


def useful_signal(series: Pairs, *, losses: Sequence[float], lrs: Sequence[float]) -> Series | None:
    """Return the useful part of each step's squared norm; None if no noise part is detected.

    >>> losses = [1.0 - 0.01 * t for t in range(40)]
    >>> useful = useful_signal([(8.0, 0.5)] * 40, losses=losses, lrs=[0.1] * 40)
    >>> useful[:3].round(2).tolist()
    [0.05, 0.05, 0.05]

    Args:
        series: Pair (variance, sqnorm) of each step, measured at the base batch size.
        losses: Training losses of the same steps.
        lrs: Effective learning rates of the same steps (see `effective_lr`); empty if unknown.
    """
    rates = np.asarray(lrs, dtype=np.float64)
    if len(rates) != len(series) or len(rates) < 2 * EDGE or not (rates > 0.0).all():
        return None
    means = moving_means(losses)
    useful: Series = -np.diff(means) / rates
    kept = float((np.asarray(series)[:, 1] - useful).sum())
    return useful if kept > SURE * _error(losses, means, 1.0 / rates) else None


def moving_means(losses: Sequence[float]) -> Series:
    """Return the mean loss around the start of each step and around the end of the last step.

    The result has T + 1 values. Each mean covers REACH steps to each side. Near the first and the
    last step, each mean covers as many steps as exist on both sides, but at least EDGE steps.
    """
    steps = len(losses)
    at = np.arange(steps + 1)
    reach = np.clip(np.minimum(at, steps - at), EDGE, REACH)
    start, stop = np.maximum(at - reach, 0), np.minimum(at + reach, steps)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    means: Series = (sums[stop] - sums[start]) / (stop - start)
    return means


def effective_lr(optimizer: Optimizer) -> float | None:
    """Return lr * (1 - dampening) / (1 - momentum) of SGD; None for any other optimizer.

    The result is also None if parameter groups have different values, or if the optimizer
    maximizes.

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
    """Return an upper bound on the standard error of a sum over all steps: each step's weight times
    the fall of the loss in this step.

    The weighted sum equals a sum of the first mean loss, the last mean loss, and the other mean
    losses times the differences of consecutive weights.
    """
    away = np.asarray(losses) - (means[:-1] + means[1:]) / 2.0
    change = float(weights[0] + weights[-1] + np.abs(np.diff(weights)).sum())
    return float(np.std(away)) * change / math.sqrt(EDGE)
