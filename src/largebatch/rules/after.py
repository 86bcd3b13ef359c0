"""A factor that holds first and decays then, beside a warm-up, whose rise is another rule's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from largebatch.rules.factors import Cosine, Factor


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """`height` until `start`, then `height` times the factor over what is left of the budget.

    >>> [round(After(start=0.2)(x), 6) for x in (0.1, 0.2, 0.6, 1.0)]
    [1.0, 1.0, 0.5, 0.0]

    Args:
        start: the part of the budget before it, in [0, 1).
        factor: of the fraction of the rest.
        height: of the first part, above 0.

    Raises:
        ValueError: a start outside of [0, 1), or a height that is not above 0.
    """

    start: float
    factor: Factor = field(default_factory=Cosine)
    height: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < 1.0 or not 0.0 < self.height < math.inf:
            raise ValueError(
                "A part of the budget lies before the decay, which begins from a height above 0, "
                f"as in After(start=0.1, factor=Cosine()); got {self}."
            )

    def __call__(self, fraction: float) -> float:
        rest = max(fraction - self.start, 0.0) / (1.0 - self.start)
        return self.height * self.factor(min(rest, 1.0))
