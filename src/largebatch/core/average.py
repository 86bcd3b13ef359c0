"""Compute running averages of two numbers, and a confidence interval of their ratio.

Each new pair of numbers (x, y) has a weight that is proportional to the inverse of the pair's
variance. With each new pair, a given fraction of the past is forgotten:

    W' = (1 - forget) * W + weight,      mean' = mean + weight / W' * (new - mean)

If new weights are permanently smaller than old weights, the new pair still makes up at least the
fraction `forget` of the new mean. Without the lower limit `forget`, new pairs could never replace
old pairs with large weights. A single pair with a small weight, such as a short last batch of an
epoch, has little effect.

If one pair of weight 1 has the covariance C, the mean has the covariance V / W^2 * C. The number V
is the sum of (fraction not yet forgotten)^2 * weight over all pairs. The covariance C is estimated
from the difference between each pair and the mean of the earlier pairs, relative to x. Therefore a
drift of x and y widens the interval of the ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from largebatch.core.codec import LATER
from largebatch.core.range import Range
from largebatch.core.student import t_quantile

ONE_SIDED = 0.9
"""Probability that the true ratio is above the lower bound of its interval, and probability that
the true ratio is below the upper bound.
"""

FEWEST_DEGREES = 2
"""Fewest degrees of freedom of the covariance for which an interval of the ratio is given."""

FARTHEST = 1e100
"""Largest deviation from the mean, relative to x. Deviations are capped so that their squares are
finite.
"""

MANY_DEGREES = 200
"""Number of degrees of freedom above which Student's t changes by only about 0.3 %."""

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Hold a running mean of two numbers that are always measured together.

    >>> a = Average().add((4.0, 1.0), forget=0.5).add((8.0, 1.0), forget=0.5)
    >>> round(a.values[0], 6)
    6.666667

    Args:
        values: Means of x and of y.
        weight: Total weight W of the pairs after forgetting.
        count: Number of pairs added.
        squares: Sum V, which the module docstring defines. The sum V is 0 in an average that
            version 0.1 saved.
        covariance: Estimate of the covariance C relative to x^2, as the entries (x, x), (x, y), (y,
            y).
        degrees: Degrees of freedom of `covariance`. Degrees of freedom are forgotten at the same
            rate as the mean.
        last: Weight of the last pair.
    """

    values: Pair = (0.0, 0.0)
    weight: float = 0.0
    count: int = 0
    squares: float = field(default=0.0, metadata=LATER)
    covariance: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0), metadata=LATER)
    degrees: float = field(default=0.0, metadata=LATER)
    last: float = field(default=0.0, metadata=LATER)

    def add(
        self, seen: Pair, *, forget: float, weight: float = 1.0, plain: bool = False
    ) -> Average:
        """Return the average after adding one more pair.

        Args:
            seen: New pair (x, y).
            forget: Fraction of the past to forget, in [0, 1].
            weight: Weight of the pair, above 0. The weight is the inverse of the pair's variance,
                in any unit.
            plain: Whether to use the plain mean of all pairs at first. The plain mean is used as
                long as a new pair's share in the mean is larger than `forget`, as in the AdaScale
                paper (arXiv 2007.05105).
        """
        past = self.weight if plain else (1.0 - forget) * self.weight
        least = forget * min(1.0, weight / self.last) if self.last > 0.0 else forget
        share = max(weight / (past + weight), least)
        total = weight / share
        # `kept` is the fraction of the old weight that remains. `kept` is below 1 - forget if
        # `least` is larger than weight / (past + weight).
        kept = (total - weight) / self.weight if self.weight > 0.0 else 0.0
        covariance, degrees = self._covariance(seen, forget=forget, weight=weight)
        (x, y), (new_x, new_y) = self.values, seen
        return Average(
            values=(x + share * (new_x - x), y + share * (new_y - y)),
            weight=total,
            count=self.count + 1,
            squares=kept * kept * self.squares + weight,
            covariance=covariance,
            degrees=degrees,
            last=weight,
        )

    def ratio(self) -> Range | None:
        """Return the ratio y / x with its confidence interval, or None if the ratio is unknown.

        The ratio is unknown if there are too few pairs, if x is not above 0, or if x is so small
        that y / x is infinite. The bounds q solve (y - q x)^2 = t^2 var(y - q x) (Fieller's
        theorem), where t is the quantile of Student's t at probability `ONE_SIDED`, with the
        degrees of freedom of the covariance. The bounds are infinite if x is not significantly
        above 0.

        >>> a = Average()
        >>> for pair in ((1.0, 2.0), (1.1, 2.0), (0.9, 2.0), (1.0, 2.1), (1.0, 1.9)):
        ...     a = a.add(pair, forget=0.0)
        >>> print(a.ratio())
        2 [1.9, 2.11]
        """
        x, y = self.values
        if not x > 0.0 or math.isinf(y / x) or not self.degrees >= FEWEST_DEGREES:
            return None
        t = t_quantile(2.0 * ONE_SIDED - 1.0, degrees=min(int(self.degrees), MANY_DEGREES))
        factor = t * t * self.squares / (self.weight * self.weight)
        xx, xy, yy = (factor * one for one in self.covariance)
        ratio = y / x
        lead = 1.0 - xx
        # root = (ratio - xy)^2 - lead (ratio^2 - yy), rearranged to avoid cancellation. A negative
        # root is a rounding error.
        root = (xx * ratio - 2.0 * xy) * ratio + xy * xy + lead * yy
        if not lead > 0.0 or not math.isfinite(root):
            return Range(value=ratio, low=-math.inf, high=math.inf)
        half = math.sqrt(max(root, 0.0))
        return Range(value=ratio, low=(ratio - xy - half) / lead, high=(ratio - xy + half) / lead)

    def _covariance(
        self, seen: Pair, *, forget: float, weight: float
    ) -> tuple[tuple[float, float, float], float]:
        """Return the covariance after one more pair, and its degrees of freedom."""
        x, y = self.values
        if not x > 0.0 or self.weight <= 0.0:
            return self.covariance, self.degrees
        dx, dy = (
            min(max(one, -FARTHEST), FARTHEST) for one in (seen[0] / x - 1.0, (seen[1] - y) / x)
        )
        expected = 1.0 / weight + self.squares / (self.weight * self.weight)
        degrees = (1.0 - forget) * self.degrees + 1.0
        xx, xy, yy = self.covariance
        return (
            xx + (dx * dx / expected - xx) / degrees,
            xy + (dx * dy / expected - xy) / degrees,
            yy + (dy * dy / expected - yy) / degrees,
        ), degrees
