"""Convert a noise scale to the share of signal in the base batch's squared gradient, and back."""

from __future__ import annotations

import math


def signal_share(*, noise_scale: float, base_batch_size: float) -> float:
    """Return the share of the base batch's squared gradient that is signal, b / (n + b).

    >>> signal_share(noise_scale=48, base_batch_size=16)
    0.25
    """
    return base_batch_size / (noise_scale + base_batch_size)


def noise_scale_at(*, signal: float, base_batch_size: float) -> float:
    """Return the noise scale in samples at which the signal has the given share; `inf` if the share
    is 0.

    >>> noise_scale_at(signal=0.25, base_batch_size=16)
    48.0
    """
    return base_batch_size * (1.0 - signal) / signal if signal > 0.0 else math.inf
