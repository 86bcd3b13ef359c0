"""A schedule's factor on the learning rate as a function of the budget's fraction x in [0, 1].

Each starts at 1; the rise at the start of a run is another rule, `WarmUp`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol


class Factor(Protocol):
    """A factor on the learning rate as a function of the fraction of a budget in [0, 1]."""

    def __call__(self, fraction: float) -> float: ...


def _fall(remaining: float, *, end: float) -> float:
    """From 1 at `remaining` = 1 to `end` at 0."""
    return end + (1.0 - end) * remaining


def _check_end(factor: Factor, end: float) -> None:
    if not 0.0 <= end < math.inf:
        raise ValueError(
            f"The last factor on the learning rate is 0 or more, as in Cosine(end=0.0); "
            f"got {factor}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """1 throughout.

    >>> Constant()(0.7)
    1.0
    """

    def __call__(self, fraction: float) -> float:
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDecay:
    """Times `factor` from each of the fractions `at` on.

    >>> [round(StepDecay()(x), 4) for x in (0.0, 0.33, 0.7)]
    [1.0, 0.1, 0.01]

    Args:
        at: fractions of the budget in [0, 1], rising.
        factor: what each of them multiplies by, above 0.

    Raises:
        ValueError: fractions outside [0, 1] or not rising, or a factor that is not positive.
    """

    at: tuple[float, ...] = (0.33, 0.67)
    factor: float = 0.1

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.at, self.at[1:], strict=False))
        if (
            not rising
            or not all(0.0 <= a <= 1.0 for a in self.at)
            or not 0 < self.factor < math.inf
        ):
            raise ValueError(
                "StepDecay takes rising fractions of the budget and a factor above 0, as in "
                f"StepDecay(at=(0.5, 0.75), factor=0.1); got {self}."
            )

    def __call__(self, fraction: float) -> float:
        return self.factor ** sum(fraction >= at for at in self.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """end ** x: the same ratio over equal parts of the budget.

    >>> Exponential(end=0.01)(0.5)
    0.1

    Args:
        end: the factor when the budget is used up, above 0.

    Raises:
        ValueError: an end that is not above 0.
    """

    end: float

    def __post_init__(self) -> None:
        if not 0.0 < self.end < math.inf:
            raise ValueError(
                f"An exponential never reaches 0: give an end above it, as in "
                f"Exponential(end=0.01); got {self}."
            )

    def __call__(self, fraction: float) -> float:
        return float(self.end**fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """1 - (1 - end) x.

    >>> Linear()(0.25)
    0.75

    Args:
        end: the factor when the budget is used up, 0 or more.

    Raises:
        ValueError: a negative end.
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        _check_end(self, self.end)

    def __call__(self, fraction: float) -> float:
        return _fall(1.0 - fraction, end=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """end + (1 - end) (1 + cos(pi x)) / 2.

    >>> round(Cosine()(0.25), 6)
    0.853553

    Args:
        end: the factor when the budget is used up, 0 or more.

    Raises:
        ValueError: a negative end.

    Reference: Loshchilov, Hutter, SGDR, 2016, arXiv 1608.03983 (here without its restarts).
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        _check_end(self, self.end)

    def __call__(self, fraction: float) -> float:
        return _fall(0.5 * (1.0 + math.cos(math.pi * fraction)), end=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Polynomial:
    """end + (1 - end) (1 - x) ** power.

    >>> Polynomial()(0.5)
    0.25

    Args:
        power: above 0; 1 is `Linear`.
        end: the factor when the budget is used up, 0 or more.

    Raises:
        ValueError: a power that is not positive, or a negative end.
    """

    power: float = 2.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_end(self, self.end)
        if not 0.0 < self.power < math.inf:
            raise ValueError(f"The power is above 0, as in Polynomial(power=2.0); got {self}.")

    def __call__(self, fraction: float) -> float:
        return _fall(float((1.0 - fraction) ** self.power), end=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class WSD:
    """Stable, then decay: 1, and over the last `decay` of the budget linearly to `end`. With
    `WarmUp` before it, this is warm-up, stable, decay.

    >>> [round(WSD()(x), 4) for x in (0.5, 0.8, 0.9, 1.0)]
    [1.0, 1.0, 0.5, 0.0]

    Args:
        decay: fraction of the budget at its end, in (0, 1].
        end: the factor when the budget is used up, 0 or more.

    Raises:
        ValueError: a decay outside (0, 1], or a negative end.

    Reference: Hu et al., MiniCPM, 2024, arXiv 2404.06395 (its decay is exponential, this one linear
    as in common use).
    """

    decay: float = 0.2
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_end(self, self.end)
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(
                f"The decay is a part of the budget, as in WSD(decay=0.2); got {self}."
            )

    def __call__(self, fraction: float) -> float:
        return _fall(min((1.0 - fraction) / self.decay, 1.0), end=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldThenDecay:
    """`height` until `start`, then `height` times the factor over what is left of the budget.

    >>> [round(HoldThenDecay(start=0.2)(x), 6) for x in (0.1, 0.2, 0.6, 1.0)]
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
                f"as in HoldThenDecay(start=0.1, factor=Cosine()); got {self}."
            )

    def __call__(self, fraction: float) -> float:
        rest = max(fraction - self.start, 0.0) / (1.0 - self.start)
        return self.height * self.factor(min(rest, 1.0))
