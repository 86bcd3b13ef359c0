"""Compute gain and efficiency of a batch size from the noise scale n and the base batch size b.

    gain r(S) = S * (n + b) / (n + S * b)     number of base steps that one step counts as
    efficiency(B) = (n + b) / (n + B)         progress per sample, relative to the base batch

The noise scale n and the base batch size b are in samples. The formulas for gain and efficiency are
equivalent: r(S) = S * efficiency(S * b).
"""

from __future__ import annotations

import math


def gain_from_noise_scale(*, noise_scale: float, base_batch_size: float, scale: float) -> float:
    """Return AdaScale's gain S * (n + b) / (n + S * b): 1 if n = 0, and S if n is infinite.

    >>> round(gain_from_noise_scale(noise_scale=900, base_batch_size=128, scale=8), 6)
    4.274428

    Args:
        noise_scale: Gradient noise scale n in samples, from 0 to inf: the variance of one sample's
            gradient divided by the squared norm of the mean gradient.
        base_batch_size: Base batch size b in samples, above 0.
        scale: Scale S = batch_size / base_batch_size, above 0.

    Reference: Johnson et al., AdaScale SGD, 2020, arXiv 2007.05105, with the variance
    of the base batch written as n x squared norm / b.
    """
    if math.isinf(noise_scale):
        return float(scale)
    return scale * (noise_scale + base_batch_size) / (noise_scale + scale * base_batch_size)


def efficiency(*, noise_scale: float, base_batch_size: float, batch_size: float) -> float:
    """Return the progress per sample at batch size B, relative to the base batch size b.

    The efficiency is (n + b) / (n + B). With b = 0 the efficiency is n / (n + B): the progress per
    sample, relative to the largest progress per sample of any batch size.

    >>> efficiency(noise_scale=960, base_batch_size=64, batch_size=1088)
    0.5

    Args:
        noise_scale: Gradient noise scale n in samples, from 0 to inf.
        base_batch_size: Base batch size b in samples. If b is 0, the efficiency is relative to the
            largest progress per sample of any batch size.
        batch_size: Batch size B in samples, above 0.

    Reference: Qiao et al., Pollux, 2020, arXiv 2008.12260; McCandlish et al., An Empirical Model of
    Large-Batch Training, 2018, arXiv 1812.06162.
    """
    if math.isinf(noise_scale):
        return 1.0
    return (noise_scale + base_batch_size) / (noise_scale + batch_size)
