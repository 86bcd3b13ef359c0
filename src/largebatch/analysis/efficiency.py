"""What the noise scale n says about batch sizes B, beside a base batch b (all in samples).

    steps / fewest possible = 1 + n / B;    samples / fewest possible = 1 + B / n
    learning rate:  r(S) = S (n + b) / (n + S b) times that of the base batch,  S = B / b
    steps beside the base batch: 1 / r;     samples beside the base batch: S / r = (n + B) / (n + b)

The first line is (steps / fewest - 1)(samples / fewest - 1) = 1: each can be traded for the other,
and at B = n both are doubled. The last is the first divided by its value at b, so the two agree.

McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162.
Johnson et al.: AdaScale SGD, 2020, arXiv 2007.05105. Qiao et al.: Pollux, 2020, arXiv 2008.12260
(its efficiency is the inverse of samples beside the base batch).
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
    """What a batch size costs and saves beside the base batch.

    Args:
        batch_size: B, in samples.
        scale: S = B / b.
        lr_multiplier: AdaScale's gain r, for SGD.
        steps: optimizer steps beside those of the base batch, 1 / r.
        samples: training samples beside those of the base batch, S / r.
    """

    batch_size: int
    scale: float
    lr_multiplier: Range
    steps: Range
    samples: Range


def steps_over_fewest(*, noise_scale: float, batch_size: float) -> float:
    """Steps beside the fewest that any batch needs: 1 + n / B.

    >>> steps_over_fewest(noise_scale=1000, batch_size=250)
    5.0

    Reference: arXiv 1812.06162.
    """
    return 1.0 + noise_scale / batch_size


def samples_over_fewest(*, noise_scale: float, batch_size: float) -> float:
    """Samples beside the fewest that any batch needs: 1 + B / n; `inf` without noise.

    >>> samples_over_fewest(noise_scale=1000, batch_size=250)
    1.25

    Reference: arXiv 1812.06162.
    """
    return 1.0 + batch_size / noise_scale if noise_scale > 0.0 else math.inf


def half_efficiency_batch_size(*, noise_scale: float, base_batch_size: float = 0.0) -> float:
    """The batch that needs twice the samples: n + 2 b.

    With b = 0, twice the fewest possible: (n + B) / n = 2 at B = n, the critical batch size of
    arXiv 1812.06162. With b > 0, twice those of the base batch: (n + B) / (n + b) = 2.

    >>> half_efficiency_batch_size(noise_scale=1000)
    1000.0
    >>> half_efficiency_batch_size(noise_scale=1000, base_batch_size=64)
    1128.0
    """
    return noise_scale + 2.0 * base_batch_size


def paying_batch_size(*, noise_scale: float, base_batch_size: float) -> float:
    """Where doubling stops paying: the batch b 2^j that the last doubling worth it reaches.

    A doubling from B is worth it when it saves at least a quarter of the steps, that is when
    r(2 S) / r(S) = 2 (n + B) / (n + 2 B) >= 4/3, which is B <= n. A quarter is half of what the
    doubling saves where it costs no samples at all; at B = n it costs half as many samples again.
    So the next doubling still pays at half of this batch, and no more at it; b itself where
    not even the first doubling pays.

    >>> paying_batch_size(noise_scale=1000, base_batch_size=64)
    1024.0
    >>> paying_batch_size(noise_scale=50, base_batch_size=64)
    64.0
    """
    if noise_scale < base_batch_size:
        return float(base_batch_size)
    if math.isinf(noise_scale):
        return math.inf
    _, doublings = math.frexp(noise_scale / base_batch_size)
    return math.ldexp(base_batch_size, doublings)


def paying_range(estimate: NoiseEstimate, base_batch_size: int) -> Range:
    """`paying_batch_size` over the interval of the noise scale."""

    def batch(noise_scale: float) -> float:
        return paying_batch_size(noise_scale=noise_scale, base_batch_size=base_batch_size)

    return _range(batch, estimate)


def batch_table(
    estimate: NoiseEstimate, base_batch_size: int, batches: Sequence[int] | None = None
) -> tuple[BatchRow, ...]:
    """A row for each batch size, its numbers with their range over the noise scale's interval.

    >>> noise = NoiseEstimate(
    ...     noise_scale=960, low=700, high=1500, steps=400, variance=960, sqnorm=1)
    >>> print(batch_table(noise, 64, [1024])[0].lr_multiplier)
    8.26 [7.09, 9.91]

    Args:
        estimate: the noise scale.
        base_batch_size: b, in samples.
        batches: batch sizes in samples; by default the base batch and its doublings, up to one
            beyond the last that pays at the estimate (at `low` where the estimate is infinite).

    Raises:
        ValueError: a batch size below 1.
    """
    for batch in (base_batch_size, *(batches or ())):
        if not batch >= 1:
            raise ValueError(f"a batch size is a number of samples, at least 1; got {batch!r}.")
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
    """A formula that is monotone in the noise scale, over the interval."""
    ends = formula(estimate.low), formula(estimate.high)
    return Range(value=formula(estimate.noise_scale), low=min(ends), high=max(ends))


def _doublings(estimate: NoiseEstimate, base_batch_size: int) -> list[int]:
    known = estimate.low if math.isinf(estimate.noise_scale) else estimate.noise_scale
    last = 2.0 * paying_batch_size(noise_scale=known, base_batch_size=base_batch_size)
    sizes = [base_batch_size]
    while sizes[-1] < last:
        sizes.append(2 * sizes[-1])
    return sizes
