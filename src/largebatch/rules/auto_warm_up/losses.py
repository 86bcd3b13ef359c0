"""Store the losses of a run in bounded memory, and fit a curve to the losses."""

from __future__ import annotations

import math
import zlib
from array import array
from dataclasses import dataclass

import numpy as np

from largebatch.rules.auto_warm_up.gaussian_process import Posterior, Row, posterior_of

MOST = 128
"""Number of stored means at which every two neighboring means are merged into one mean."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Losses:
    """Store losses as at most MOST means of consecutive losses.

    Ranks compare states by `repr` in each step, so `repr` shows a checksum instead of the means.

    >>> losses = Losses()
    >>> for step in range(200):
    ...     losses = losses.add(float(step))
    >>> len(losses.means), losses.width, losses.means[0], losses.recorded
    (100, 2, 0.5, 200)

    Args:
        means: Means of `width` consecutive losses each, in order.
        width: Number of losses in one mean.
        total: Sum of the losses after the last mean.
        count: Number of losses in `total`.
    """

    means: tuple[float, ...] = ()
    width: int = 1
    total: float = 0.0
    count: int = 0

    def __repr__(self) -> str:
        means = zlib.crc32(array("d", self.means).tobytes())
        after = f"total={self.total!r}, count={self.count}"
        return f"Losses({len(self.means)} means {means:08x}, width={self.width}, {after})"

    @property
    def recorded(self) -> int:
        """Number of losses that were added."""
        return len(self.means) * self.width + self.count

    def add(self, loss: float) -> Losses:
        """Return the losses with one more loss at the end."""
        total, count = self.total + loss, self.count + 1
        if count < self.width:
            return Losses(means=self.means, width=self.width, total=total, count=count)
        means, width = (*self.means, total / count), self.width
        if len(means) == MOST:
            pairs = zip(means[::2], means[1::2], strict=True)
            means, width = tuple([(a + b) / 2.0 for a, b in pairs]), 2 * width
        return Losses(means=means, width=width)

    def curve(self, *, fence: float = math.inf) -> Posterior:
        """Return the Gaussian process behind the losses, over [0, 1] from the first to the last
        loss.

        Args:
            fence: Number of distances d above the median beyond which values are compressed by a
                logarithm, as in `fenced`.
        """
        starts = np.arange(len(self.means) + bool(self.count)) * self.width
        counts = np.full(len(starts), float(self.width))
        means = np.array(self.means)
        if self.count:
            counts[-1] = self.count
            means = np.append(means, self.total / self.count)
        x = (starts + 0.5 * (counts - 1.0)) / max(self.recorded - 1, 1)
        return posterior_of(x, fenced(means, fence=fence), counts)


def fenced(values: Row, *, fence: float) -> Row:
    """Return the values, with very large distances from the median compressed by a logarithm.

    Without the compression, the Gaussian process would treat a loss that doubles from step to step
    as noise.

        v -> top + d * log(1 + (v - top) / d)    above top = median + fence * d

    In this formula, d is the distance from the lower quartile to the median, so up to half of the
    values may be very large. If d is 0, because many values are equal, nothing changes.

    >>> fenced(np.array([1.0, 2.0, 3.0, 4.0, 1e9]), fence=3.0).round(1)
    array([ 1. ,  2. ,  3. ,  4. , 26.7])

    Args:
        values: Finite values, [N].
        fence: Number of distances d above the median, above 0; inf changes nothing.
    """
    ordered = np.sort(values)
    median = ordered[len(ordered) // 2]
    distance = median - ordered[len(ordered) // 4]
    top = median + fence * distance if distance > 0.0 else math.inf
    if not ordered[-1] > top:
        return values
    excess = np.maximum(values - top, 0.0)
    above: Row = distance * (np.log(distance + excess) - math.log(distance))  # no overflow
    return np.minimum(values, top) + above
