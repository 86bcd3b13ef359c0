"""What a batch size is worth, from the noise scale n and the base batch b, both in samples.

    gain r(S) = S (n + b) / (n + S b)         steps of the base batch that one step is worth
    efficiency(B) = (n + b) / (n + B)         progress per sample, beside that of the base batch

They are one statement: r(S) = S efficiency(S b).
"""

from __future__ import annotations

import math


def gain_from_noise_scale(*, noise_scale: float, base_batch_size: float, scale: float) -> float:
    """AdaScale's gain: S (n + b) / (n + S b); 1 without noise, S without signal.

    >>> round(gain_from_noise_scale(noise_scale=900, base_batch_size=128, scale=8), 6)
    4.274428

    Args:
        noise_scale: n, the variance of one sample / squared norm; 0 to inf, in samples.
        base_batch_size: b, in samples, above 0.
        scale: S = B / b, above 0.

    Reference: Johnson et al., AdaScale SGD, 2020, arXiv 2007.05105, with the variance
    of the base batch written as n x squared norm / b.
    """
    if math.isinf(noise_scale):
        return float(scale)
    return scale * (noise_scale + base_batch_size) / (noise_scale + scale * base_batch_size)


def efficiency(*, noise_scale: float, base_batch_size: float, batch_size: float) -> float:
    """Progress per sample of a batch B beside that of the base batch: (n + b) / (n + B).

    With b = 0 it is progress per sample beside the best that any batch can do, n / (n + B).

    >>> efficiency(noise_scale=960, base_batch_size=64, batch_size=1088)
    0.5

    Args:
        noise_scale: n, 0 to inf, in samples.
        base_batch_size: b, in samples; 0 compares with the smallest number of samples possible.
        batch_size: B, in samples, above 0.

    Reference: Qiao et al., Pollux, 2020, arXiv 2008.12260; McCandlish et al., An Empirical Model of
    Large-Batch Training, 2018, arXiv 1812.06162.
    """
    if math.isinf(noise_scale):
        return 1.0
    return (noise_scale + base_batch_size) / (noise_scale + batch_size)
