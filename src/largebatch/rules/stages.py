"""Stages of a run, each with a batch and a rate: what the rules that grow both have in common.

    batch of stage m = delta^m * first batch,    rate of stage m = gamma^m * base rate

What moves a run from one stage to the next is the rule's: a clock (`Growth`), the noise scale
(`AdaptiveGrowth`). So batch and rate are one table, and change in the same step.

Umeda, Iiduka: Increasing Both Batch Size and Learning Rate Accelerates Stochastic Gradient Descent,
2024, arXiv 2409.08770.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from largebatch.core.measurement import Measurement
from largebatch.rules.sizes import whole_batch


def fractions_of(lengths: tuple[float, ...]) -> tuple[float, ...]:
    """Where stages of these lengths end, as fractions of their sum; without the last, which is 1.

    >>> fractions_of((1, 1, 2))
    (0.25, 0.5)

    Args:
        lengths: of each stage in samples or epochs, or relative to each other, above 0.

    Raises:
        ValueError: a length that is not above 0 and finite.
    """
    if not lengths or not all(0.0 < length < math.inf for length in lengths):
        raise ValueError(
            f"The lengths of stages are above 0, one for each, as in (20, 20, 40); got {lengths}."
        )
    # exact sums: ten lengths of 0.1 end at 0.3, where the clock is at 300 of 1000 samples
    *ends, whole = accumulate(map(Fraction, lengths))
    return tuple([float(end / whole) for end in ends])


def optimal_ratio(*, delta: float, gamma: float) -> float:
    """How much longer, in samples, each stage is than the one before: delta kappa = (delta/gamma)^2
    on the relation delta = gamma^2 kappa, with kappa the same ratio in steps.

    On it the bound on the squared gradient norm falls as samples^-1/2, on either side slower.
    Derived here from the bound for smooth functions and plain SGD, and checked in numbers; the
    theorem of arXiv 2508.05297 may have other constants.

    >>> round(optimal_ratio(delta=2.0, gamma=2.0**0.5), 12), optimal_ratio(delta=2.0, gamma=1.0)
    (2.0, 4.0)

    Args:
        delta, gamma: factors on batch and rate from stage to stage, above 0.
    """
    # `steps_growth_on_relation` of theory is the same ratio in steps; rules may not import theory,
    # and tests/theory/test_rules_and_theory.py compares the two.
    return (delta / gamma) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A table: the batch of each stage, and the factor on the base learning rate.

    >>> stages = Stages(batch=(1, 2, 4), lr=(1, 1.4, 1.96))
    >>> stages.required(1, first=64), stages.rate(1)
    (128.0, 1.4)

    Args:
        batch: for each stage a factor on the batch of the first one, above 0; or, where `of` is
            given, on `of`.
        lr: for each stage the factor on the base rate, above 0; () for 1 throughout.
        of: samples, at least 1: with `of=1` the batches are absolute. None for the batch with which
            the run begins.

    Raises:
        ValueError: no stage, another number of rates than of batches, or a factor that is not
            above 0 and finite, as where delta ** m overflows.
    """

    batch: tuple[float, ...]
    lr: tuple[float, ...] = ()
    of: int | None = None

    def __post_init__(self) -> None:
        sound = all(0.0 < factor < math.inf for factor in (*self.batch, *self.lr))
        paired = not self.lr or len(self.lr) == len(self.batch)
        if not self.batch or not sound or not paired or (self.of is not None and self.of < 1):
            raise ValueError(
                "Stages have a batch each, and a rate each or none, above 0 and finite, as in "
                f"Stages(batch=(1, 2, 4), lr=(1, 1.4, 1.96)); got {self}."
            )

    def __len__(self) -> int:
        return len(self.batch)

    def rate(self, stage: int) -> float:
        """The factor on the base learning rate."""
        return self.lr[stage] if self.lr else 1.0

    def required(self, stage: int, *, first: int) -> float:
        """The batch in samples, before it is rounded.

        Args:
            stage: from 0 on.
            first: samples of the run's first batch.
        """
        if self.of is not None:
            return self.of * self.batch[stage]
        return first * (self.batch[stage] / self.batch[0])

    def size(self, stage: int, *, first: int, seen: Measurement) -> int:
        """The batch in whole samples: rounded up, one for each rank, at most the data set."""
        required = self.required(stage, first=first)
        return whole_batch(required, ranks=seen.ranks, dataset_size=seen.dataset_size, least=1)

    def next_larger(self, stage: int, *, first: int, seen: Measurement) -> int | None:
        """The next stage whose batch in whole samples is larger than that of this one; None where
        there is none.

        Factors near 1 give neighbours the same size: 8 x 1.05 and 8 x 1.1 are both 9 samples.

        Args:
            stage, first, seen: as in `size`.
        """
        now = self.size(stage, first=first, seen=seen)
        later = range(stage + 1, len(self.batch))
        larger = (m for m in later if self.size(m, first=first, seen=seen) > now)
        return next(larger, None)

    def last_smaller(self, stage: int, *, first: int, seen: Measurement) -> int | None:
        """Return the last stage before this one whose batch in whole samples is smaller, or None.

        Args:
            stage, first, seen: as in `size`.
        """
        now = self.size(stage, first=first, seen=seen)
        earlier = range(stage - 1, -1, -1)
        smaller = (m for m in earlier if self.size(m, first=first, seen=seen) < now)
        return next(smaller, None)


def growing_stages(
    count: int,
    *,
    delta: float,
    gamma: float = 1.0,
    most: float = math.inf,
    rate_goes_on: bool = False,
) -> Stages:
    """Stages whose batch grows by `delta`, and the rate by `gamma`, from each to the next.

    >>> growing_stages(4, delta=2, gamma=1.5, most=4)
    Stages(batch=(1.0, 2.0, 4.0, 4.0), lr=(1.0, 1.5, 2.25, 2.25), of=None)

    Args:
        count: of stages, at least 1.
        delta, gamma: above 0. gamma = max_lr ** (1 / (count - 1)) ends at the factor `max_lr`.
        most: largest factor on the first batch, at least 1.
        rate_goes_on: whether the rate grows in the stages whose batch `most` bounds. Of the
            authors' two programs one lets it, the other does not.

    Raises:
        ValueError: a factor that is not above 0, or numbers that overflow.

    Reference: Umeda, Iiduka, 2024, arXiv 2409.08770; 2025, arXiv 2508.05297.
    """
    if count < 1 or not 0.0 < delta < math.inf or not 0.0 < gamma < math.inf or not most >= 1.0:
        raise ValueError(
            "Growth takes a number of stages, factors delta and gamma above 0, and a cap of at "
            "least 1, as in lb.methods.growth(stages=5, delta=2.0, gamma=1.4); got "
            f"{count} stages, delta={delta!r}, gamma={gamma!r}, cap {most!r}."
        )
    batch = [_power(delta, m) for m in range(count)]
    reached = max(m for m in range(count) if batch[m] <= most)
    lr = [_power(gamma, m if rate_goes_on else min(m, reached)) for m in range(count)]
    if not all(0.0 < factor < math.inf for factor in (*batch, *lr)):
        raise ValueError(
            f"{count} stages of delta={delta!r} and gamma={gamma!r} leave the range of numbers: "
            f"take fewer, as in stages=5."
        )
    return Stages(
        batch=tuple([min(factor, float(most)) for factor in batch]),
        lr=() if gamma == 1.0 else tuple(lr),
    )


def linear_stages(count: int, *, step: float, most: float = math.inf) -> Stages:
    """Stages whose batch grows by the same number of samples from each to the next.

    >>> linear_stages(3, step=0.5)
    Stages(batch=(1.0, 1.5, 2.0), lr=(), of=None)

    Args:
        count: of stages, at least 1.
        step: what each adds, as a part of the first batch, above 0.
        most: largest factor on the first batch, at least 1.

    Raises:
        ValueError: a step that is not above 0.
    """
    if count < 1 or not 0.0 < step < math.inf or not most >= 1.0:
        raise ValueError(
            "Linear growth takes a number of stages, a step above 0 and a cap of at least 1, as in "
            f"linear_stages(8, step=0.5); got {count}, step={step!r}, cap {most!r}."
        )
    return Stages(batch=tuple([min(1.0 + step * m, float(most)) for m in range(count)]))


def _power(base: float, exponent: int) -> float:
    try:
        return float(base) ** exponent
    except OverflowError:
        return math.inf
