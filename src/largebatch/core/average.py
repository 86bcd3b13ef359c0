"""Running averages as values, with the interval of a ratio of two of them.

Each new pair of numbers (x, y) counts by a weight that is proportional to the inverse of its
variance, and a given part of the past is forgotten:

    W' = (1 - forget) W + weight,        mean' = mean + weight / W' (new - mean)

If the weights have become smaller for good, the new pair is at least the part `forget` of the new
mean. Without that limit it could never replace older ones with large weights. A single pair with a
small weight, as of an epoch's short last batch, hardly counts.

If one pair of the weight 1 has the covariance C, the mean has V / W^2 C. V is the sum of
(part not yet forgotten)^2 x weight. C is estimated from how far each pair lay from the mean before
it, relative to x. So a drift of the numbers makes the interval wider.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from largebatch.core.codec import LATER
from largebatch.core.range import Range
from largebatch.core.student import t_quantile

ONE_SIDED = 0.9
"""Probability with which each end of an interval is on the right side of the true ratio."""

FEWEST_DEGREES = 2
"""Degrees of freedom of the covariance below which nothing is said of the ratio."""

FARTHEST = 1e100
"""Largest deviation from the mean that counts, relative to x, so that its square is finite."""

MANY_DEGREES = 200
"""Degrees of freedom beyond which Student's t does not change any more, to 0.3 %."""

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A running mean of two numbers that are always seen together.

    >>> a = Average().add((4.0, 1.0), forget=0.5).add((8.0, 1.0), forget=0.5)
    >>> round(a.values[0], 6)
    6.666667

    Args:
        values: the means.
        weight: total weight of what was seen and not forgotten.
        count: pairs seen.
        squares: V; 0 in an average that an earlier version wrote.
        covariance: estimate of C relative to x^2: that of (x, x), (x, y) and (y, y).
        degrees: degrees of freedom of `covariance`, of which the past is forgotten, too.
        last: the weight of the last pair.
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
        """Return the average with one more pair in it.

        Args:
            seen: the pair.
            forget: part of the past to forget, in [0, 1].
            weight: of the pair, above 0; the inverse of its variance, in any unit.
            plain: whether nothing is forgotten while the plain mean of all pairs gives the new one
                more than `forget`, as the AdaScale paper averages (arXiv 2007.05105).
        """
        past = self.weight if plain else (1.0 - forget) * self.weight
        least = forget * min(1.0, weight / self.last) if self.last > 0.0 else forget
        share = max(weight / (past + weight), least)
        total = weight / share
        # the past keeps so much of its weight, which is less where `forget` was the larger of both
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
        """Return y / x with its interval; None while too little is known, or if x is not above 0,
        or so small that y / x is infinite.

        The ends solve (y - q x)^2 = t^2 var(y - q x), Fieller's theorem, with Student's t of
        `ONE_SIDED` and the degrees of freedom of the covariance. They are infinite where x itself
        may be 0.

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
        # (ratio - xy)^2 - lead (ratio^2 - yy) without its cancellation; below 0 by rounding alone
        root = (xx * ratio - 2.0 * xy) * ratio + xy * xy + lead * yy
        if not lead > 0.0 or not math.isfinite(root):
            return Range(value=ratio, low=-math.inf, high=math.inf)
        half = math.sqrt(max(root, 0.0))
        return Range(value=ratio, low=(ratio - xy - half) / lead, high=(ratio - xy + half) / lead)

    def _covariance(
        self, seen: Pair, *, forget: float, weight: float
    ) -> tuple[tuple[float, float, float], float]:
        """Return the covariance with one more deviation in it, and its degrees of freedom."""
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
