"""Define the learning-rate factor of a schedule as a function of the budget's fraction x in [0, 1].

Each factor starts at 1. The rise of the learning rate at the start of a run is a separate rule,
`WarmUp`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol


class Factor(Protocol):
    """Describe a factor on the learning rate: a function of the budget's fraction in [0, 1]."""

    def __call__(self, fraction: float) -> float: ...


def _fall(remaining: float, *, end: float) -> float:
    """Return a value that falls linearly from 1 at `remaining` = 1 to `end` at `remaining` = 0."""
    return end + (1.0 - end) * remaining


def _check_end(factor: Factor, end: float) -> None:
    """Raise ValueError if the last factor is negative or infinite."""
    if not 0.0 <= end < math.inf:
        raise ValueError(
            f"{factor} was given, but end, the last factor on the learning rate, must be 0 or more "
            "and finite. Example: Cosine(end=0.0)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Keep the factor at 1 throughout.

    >>> Constant()(0.7)
    1.0
    """

    def __call__(self, fraction: float) -> float:
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDecay:
    """Multiply the learning rate by `factor` at each of the points `at`.

    >>> [round(StepDecay()(x), 4) for x in (0.0, 0.33, 0.7)]
    [1.0, 0.1, 0.01]

    Args:
        at: Fractions of the budget in [0, 1], in rising order.
        factor: Factor that each point of `at` applies to the learning rate, above 0.

    Raises:
        ValueError: If the fractions are outside [0, 1] or do not rise, or if the factor is not
            above 0.
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
                f"{self} was given, but `at` must contain rising fractions in [0, 1], "
                "and factor must be above 0. Example: StepDecay(at=(0.5, 0.75), factor=0.1)"
            )

    def __call__(self, fraction: float) -> float:
        return self.factor ** sum(fraction >= at for at in self.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """Decay exponentially: the factor is end ** x, so the factor falls by the same ratio over equal
    fractions of the budget.

    >>> Exponential(end=0.01)(0.5)
    0.1

    Args:
        end: Factor when the budget is used up, above 0.

    Raises:
        ValueError: If `end` is not above 0.
    """

    end: float

    def __post_init__(self) -> None:
        if not 0.0 < self.end < math.inf:
            raise ValueError(
                f"{self} was given, but an exponential decay never reaches 0, so end must be above "
                "0. Example: Exponential(end=0.01)"
            )

    def __call__(self, fraction: float) -> float:
        return float(self.end**fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Decay linearly: the factor is 1 - (1 - end) * x.

    >>> Linear()(0.25)
    0.75

    Args:
        end: Factor when the budget is used up, 0 or more.

    Raises:
        ValueError: If `end` is negative.
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        _check_end(self, self.end)

    def __call__(self, fraction: float) -> float:
        return _fall(1.0 - fraction, end=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Decay as half a cosine: the factor is end + (1 - end) * (1 + cos(pi * x)) / 2.

    >>> round(Cosine()(0.25), 6)
    0.853553

    Args:
        end: Factor when the budget is used up, 0 or more.

    Raises:
        ValueError: If `end` is negative.

    Reference: Loshchilov, Hutter, SGDR, 2016, arXiv 1608.03983, without the restarts of that paper.
    """

    end: float = 0.0

    references = ("loshchilov2016sgdr",)

    def __post_init__(self) -> None:
        _check_end(self, self.end)

    def __call__(self, fraction: float) -> float:
        return _fall(0.5 * (1.0 + math.cos(math.pi * fraction)), end=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Polynomial:
    """Decay as a power: the factor is end + (1 - end) * (1 - x) ** power.

    >>> Polynomial()(0.5)
    0.25

    Args:
        power: Exponent, above 0; the exponent 1 gives `Linear`.
        end: Factor when the budget is used up, 0 or more.

    Raises:
        ValueError: If `power` is not above 0, or if `end` is negative.
    """

    power: float = 2.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_end(self, self.end)
        if not 0.0 < self.power < math.inf:
            raise ValueError(
                f"{self} was given, but power must be above 0. Example: Polynomial(power=2.0)"
            )

    def __call__(self, fraction: float) -> float:
        return _fall(float((1.0 - fraction) ** self.power), end=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class WSD:
    """Keep the factor at 1, then decay linearly to `end` over the last part of the budget (WSD).

    Together with the rule `WarmUp`, the schedule has three phases: warm-up, stable, decay.

    >>> [round(WSD()(x), 4) for x in (0.5, 0.8, 0.9, 1.0)]
    [1.0, 1.0, 0.5, 0.0]

    Args:
        decay: Fraction of the budget that the decay takes at the end of the run, in (0, 1].
        end: Factor when the budget is used up, 0 or more.

    Raises:
        ValueError: If `decay` is outside (0, 1], or if `end` is negative.

    Reference: Hu et al., MiniCPM, 2024, arXiv 2404.06395. The decay in the paper is exponential;
    the decay of `WSD` is linear, as in common use.
    """

    decay: float = 0.2
    end: float = 0.0

    references = ("hu2024minicpm",)

    def __post_init__(self) -> None:
        _check_end(self, self.end)
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(
                f"{self} was given, but decay must be a fraction of the budget in (0, 1]. "
                "Example: WSD(decay=0.2)"
            )

    def __call__(self, fraction: float) -> float:
        return _fall(min((1.0 - fraction) / self.decay, 1.0), end=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldThenDecay:
    """Keep the factor at `height` until `start`, then apply another factor to the rest of the
    budget.

    >>> [round(HoldThenDecay(start=0.2)(x), 6) for x in (0.1, 0.2, 0.6, 1.0)]
    [1.0, 1.0, 0.5, 0.0]

    Args:
        start: Fraction of the budget before the decay, in [0, 1).
        factor: Factor that decays over the rest of the budget; it is multiplied by `height`.
        height: Factor on the learning rate before the decay, above 0.

    Raises:
        ValueError: If `start` is outside [0, 1), or if `height` is not above 0.
    """

    start: float
    factor: Factor = field(default_factory=Cosine)
    height: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < 1.0 or not 0.0 < self.height < math.inf:
            raise ValueError(
                f"{self} was given, but start must be a fraction of the budget in [0, 1), and "
                "height above 0. Example: HoldThenDecay(start=0.1, factor=Cosine())"
            )

    def __call__(self, fraction: float) -> float:
        rest = max(fraction - self.start, 0.0) / (1.0 - self.start)
        return self.height * self.factor(min(rest, 1.0))
