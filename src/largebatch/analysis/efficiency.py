"""Compute what the noise scale n implies for batch sizes B, relative to a base batch size b.

The numbers n, B and b are in samples.

    steps / fewest possible steps      = 1 + n / B
    samples / fewest possible samples  = 1 + B / n
    lr / base lr                       = r(S) = S * (n + b) / (n + S * b),  S = B / b
    steps / steps at b                 = 1 / r
    samples / samples at b             = S / r = (n + B) / (n + b)

The first two formulas imply (steps / fewest - 1) * (samples / fewest - 1) = 1. So a large batch
needs fewer steps and more samples than a small batch. At B = n, both steps and samples are twice
their minimum. The fourth formula equals the first formula divided by the value of the first formula
at b.

References: McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch Training, 2018, arXiv
1812.06162. Johnson et al.: AdaScale SGD, 2020, arXiv 2007.05105. Qiao et al.: Pollux, 2020, arXiv
2008.12260 (its efficiency is the inverse of the fifth formula).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from largebatch.analysis.noise import NoiseEstimate
from largebatch.core.formulas import efficiency, gain_from_noise_scale
from largebatch.core.range import Range as Range


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """Compare a batch size with the base batch size: learning rate, steps and samples.

    Args:
        batch_size: Batch size B in samples.
        scale: Scale S = B / b.
        lr_multiplier: AdaScale's gain r, a factor for the learning rate of SGD.
        steps: Number of optimizer steps divided by the number at the base batch size, 1 / r.
        samples: Number of training samples divided by the number at the base batch size, S / r.
    """

    batch_size: int
    scale: float
    lr_multiplier: Range
    steps: Range
    samples: Range


def steps_over_fewest(*, noise_scale: float, batch_size: float) -> float:
    """Return the steps at batch size B divided by the fewest steps of any batch size: 1 + n / B.

    >>> steps_over_fewest(noise_scale=1000, batch_size=250)
    5.0

    Args:
        noise_scale: Gradient noise scale n in samples.
        batch_size: Batch size B in samples.

    Reference: arXiv 1812.06162.
    """
    return 1.0 + noise_scale / batch_size


def samples_over_fewest(*, noise_scale: float, batch_size: float) -> float:
    """Return the samples at batch size B divided by the fewest samples of any batch size: 1 + B /
    n.

    Without noise, the result is `inf`.

    >>> samples_over_fewest(noise_scale=1000, batch_size=250)
    1.25

    Args:
        noise_scale: Gradient noise scale n in samples.
        batch_size: Batch size B in samples.

    Reference: arXiv 1812.06162.
    """
    return 1.0 + batch_size / noise_scale if noise_scale > 0.0 else math.inf


def half_efficiency_batch_size(*, noise_scale: float, base_batch_size: float = 0.0) -> float:
    """Return the batch size that needs twice as many samples as the base batch size: n + 2 * b.

    With b > 0, the result solves (n + B) / (n + b) = 2. With b = 0, the result is B = n, the
    critical batch size of arXiv 1812.06162, which needs twice the fewest samples of any batch size:
    (n + B) / n = 2.

    >>> half_efficiency_batch_size(noise_scale=1000)
    1000.0
    >>> half_efficiency_batch_size(noise_scale=1000, base_batch_size=64)
    1128.0

    Args:
        noise_scale: Gradient noise scale n in samples.
        base_batch_size: Base batch size b in samples.
    """
    return noise_scale + 2.0 * base_batch_size


def paying_batch_size(*, noise_scale: float, base_batch_size: float) -> float:
    """Return the largest batch size b * 2^j for which every doubling from b saves enough steps.

    A doubling from B to 2 * B saves at least a quarter of the steps if r(2 * S) / r(S) = 2 * (n +
    B) / (n + 2 * B) >= 4/3, which is equivalent to B <= n. A doubling without additional samples
    saves half of the steps, and the required quarter is half of that saving. The doubling from B =
    n to B = 2 * n multiplies the number of samples by 1.5. If even the first doubling saves less
    than a quarter of the steps, the result is b.

    >>> paying_batch_size(noise_scale=1000, base_batch_size=64)
    1024.0
    >>> paying_batch_size(noise_scale=50, base_batch_size=64)
    64.0

    Args:
        noise_scale: Gradient noise scale n in samples, from 0 to inf.
        base_batch_size: Base batch size b in samples.
    """
    if noise_scale < base_batch_size:
        return float(base_batch_size)
    if math.isinf(noise_scale):
        return math.inf
    _, doublings = math.frexp(noise_scale / base_batch_size)
    return math.ldexp(base_batch_size, doublings)


def paying_range(estimate: NoiseEstimate, base_batch_size: int) -> Range:
    """Return `paying_batch_size` for the noise scale and for the bounds of its interval."""

    def batch(noise_scale: float) -> float:
        return paying_batch_size(noise_scale=noise_scale, base_batch_size=base_batch_size)

    return _range(batch, estimate)


def batch_table(
    estimate: NoiseEstimate, base_batch_size: int, batches: Sequence[int] | None = None
) -> tuple[BatchRow, ...]:
    """Return one row per batch size. Each number in a row has an interval, computed from the
    interval of the noise scale.

    >>> noise = NoiseEstimate(
    ...     noise_scale=960, low=700, high=1500, steps=400, variance=960, sqnorm=1)
    >>> print(batch_table(noise, 64, [1024])[0].lr_multiplier)
    8.26 [7.09, 9.91]

    Args:
        estimate: Estimate of the gradient noise scale.
        base_batch_size: Base batch size b in samples.
        batches: Batch sizes in samples. If None, the batch sizes are the base batch size and its
            doublings, up to twice `paying_batch_size`. The doublings use the lower bound of the
            noise scale if the estimate is infinite.

    Raises:
        ValueError: A batch size is below 1.
    """
    for batch in (base_batch_size, *(batches or ())):
        if not batch >= 1:
            raise ValueError(
                f"The batch size {batch!r} was given, but a batch size must be a number of "
                "samples, at least 1. Pass batch_table(estimate, 64, [128, 256])."
            )
    sizes = _doublings(estimate, base_batch_size) if batches is None else batches
    return tuple(_row(estimate, base_batch_size, batch) for batch in sizes)


def _row(estimate: NoiseEstimate, base_batch_size: int, batch_size: int) -> BatchRow:
    scale = batch_size / base_batch_size

    def gain(noise_scale: float) -> float:
        return gain_from_noise_scale(
            noise_scale=noise_scale, base_batch_size=base_batch_size, scale=scale
        )

    def samples(noise_scale: float) -> float:
        return 1.0 / efficiency(
            noise_scale=noise_scale, base_batch_size=base_batch_size, batch_size=batch_size
        )

    return BatchRow(
        batch_size=batch_size,
        scale=scale,
        lr_multiplier=_range(gain, estimate),
        steps=_range(lambda noise_scale: 1.0 / gain(noise_scale), estimate),
        samples=_range(samples, estimate),
    )


def _range(formula: Callable[[float], float], estimate: NoiseEstimate) -> Range:
    """Return the values of a monotone formula at the noise scale and at both bounds of its
    interval.
    """
    ends = formula(estimate.low), formula(estimate.high)
    return Range(value=formula(estimate.noise_scale), low=min(ends), high=max(ends))


def _doublings(estimate: NoiseEstimate, base_batch_size: int) -> list[int]:
    known = estimate.low if math.isinf(estimate.noise_scale) else estimate.noise_scale
    last = 2.0 * paying_batch_size(noise_scale=known, base_batch_size=base_batch_size)
    sizes = [base_batch_size]
    while sizes[-1] < last:
        sizes.append(2 * sizes[-1])
    return sizes
