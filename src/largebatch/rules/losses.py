"""The losses of a run in bounded memory, and the curve behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from largebatch.rules.gaussian_process import Curve, fit

MOST = 128
"""Numbers that are kept; then neighbours are merged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Losses as means of neighbours, at most MOST of them.

    >>> losses = Losses()
    >>> for step in range(200):
    ...     losses = losses.add(float(step))
    >>> len(losses.means), losses.width, losses.means[0], losses.recorded
    (100, 2, 0.5, 200)

    Args:
        means: of `width` losses each, in order.
        width: how many losses one mean holds.
        total, count: of the losses after them.
    """

    means: tuple[float, ...] = ()
    width: int = 1
    total: float = 0.0
    count: int = 0

    @property
    def recorded(self) -> int:
        """How many losses there were."""
        return len(self.means) * self.width + self.count

    def add(self, loss: float) -> Losses:
        """With one more."""
        total, count = self.total + loss, self.count + 1
        if count < self.width:
            return Losses(means=self.means, width=self.width, total=total, count=count)
        means, width = (*self.means, total / count), self.width
        if len(means) == MOST:
            pairs = zip(means[::2], means[1::2], strict=True)
            means, width = tuple([(a + b) / 2.0 for a, b in pairs]), 2 * width
        return Losses(means=means, width=width)

    def curve(self) -> Curve:
        """The Gaussian process behind them, over [0, 1] from the first loss to now."""
        starts = np.arange(len(self.means) + bool(self.count)) * self.width
        counts = np.full(len(starts), float(self.width))
        means = np.array(self.means)
        if self.count:
            counts[-1] = self.count
            means = np.append(means, self.total / self.count)
        x = (starts + 0.5 * (counts - 1.0)) / max(self.recorded - 1, 1)
        return fit(x, means, counts)
