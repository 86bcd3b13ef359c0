"""Describe the stages of a run: each has a batch size and a learning rate.

    batch size of stage m = delta^m * first batch size
    learning rate of stage m = gamma^m * base learning rate

A rule moves the run from one stage to the next: `Growth` at given points of the run,
`AdaptiveGrowth` by the noise scale. Batch size and learning rate are in one table, so they change
in the same step.

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
    """Return the end of each stage but the last, as a fraction of the total length.

    >>> fractions_of((1, 1, 2))
    (0.25, 0.5)

    Args:
        lengths: Length of each stage in samples or epochs, or relative to each other, above 0.

    Raises:
        ValueError: If a length is not above 0 and finite.
    """
    if not lengths or not all(0.0 < length < math.inf for length in lengths):
        raise ValueError(
            f"lengths={lengths} was given, but it must contain one finite number above 0 for each "
            "stage. Example: lengths=(20, 20, 40)"
        )
    # Sums are exact: with ten lengths of 0.1, the third stage ends at 300 of 1000 samples.
    *ends, whole = accumulate(map(Fraction, lengths))
    return tuple([float(end / whole) for end in ends])


def optimal_ratio(*, delta: float, gamma: float) -> float:
    """Return the best ratio of a stage's length in samples to the length of the stage before.

    If the lengths in steps have the ratio kappa = delta / gamma^2, the lengths in samples have the
    ratio delta * kappa = (delta / gamma)^2. With this ratio, the bound on the squared gradient norm
    falls as samples^(-1/2); with any other ratio of the lengths, the bound falls more slowly. We
    derived the formula from the bound for smooth functions and plain SGD, and checked the
    derivation numerically. The theorem of arXiv 2508.05297 may have other constants.

    >>> round(optimal_ratio(delta=2.0, gamma=2.0**0.5), 12), optimal_ratio(delta=2.0, gamma=1.0)
    (2.0, 4.0)

    Args:
        delta: Factor on the batch size from stage to stage, above 0.
        gamma: Factor on the learning rate from stage to stage, above 0.
    """
    # The function `steps_growth_on_relation` in `theory` gives the same ratio in steps.
    # Rules may not import `theory`, so tests/theory/test_rules_and_theory.py compares the two.
    return (delta / gamma) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Hold a table with the batch size of each stage and its factor on the base learning rate.

    >>> stages = Stages(batch=(1, 2, 4), lr=(1, 1.4, 1.96))
    >>> stages.required(1, first=64), stages.rate(1)
    (128.0, 1.4)

    Args:
        batch: Factor of each stage on the batch size, above 0: relative to the first stage's batch
            size, or relative to `of` if `of` is set.
        lr: Factor of each stage on the base learning rate, above 0; () for 1 in all stages.
        of: Unit of `batch` in samples, at least 1: with `of=1`, the batch sizes are absolute. None
            for the batch size with which the run begins.

    Raises:
        ValueError: If there is no stage, if the numbers of learning rates and batch sizes differ,
            or if a factor is not above 0 and finite, for example because delta ** m overflowed.
    """

    batch: tuple[float, ...]
    lr: tuple[float, ...] = ()
    of: int | None = None

    def __post_init__(self) -> None:
        sound = all(0.0 < factor < math.inf for factor in (*self.batch, *self.lr))
        paired = not self.lr or len(self.lr) == len(self.batch)
        if not self.batch or not sound or not paired or (self.of is not None and self.of < 1):
            raise ValueError(
                f"{self} was given, but each stage needs a batch factor, and lr must have one "
                "factor for each stage or be empty. All factors must be above 0 and finite. "
                "Example: Stages(batch=(1, 2, 4), lr=(1, 1.4, 1.96))"
            )

    def __len__(self) -> int:
        return len(self.batch)

    def rate(self, stage: int) -> float:
        """Return the factor on the base learning rate in a stage."""
        return self.lr[stage] if self.lr else 1.0

    def required(self, stage: int, *, first: int) -> float:
        """Return the batch size of a stage in samples, before rounding.

        Args:
            stage: Index of the stage, from 0.
            first: Batch size of the run's first step, in samples.
        """
        if self.of is not None:
            return self.of * self.batch[stage]
        return first * (self.batch[stage] / self.batch[0])

    def size(self, stage: int, *, first: int, seen: Measurement) -> int:
        """Return the batch size of a stage in whole samples.

        The batch size is rounded up. The result is at least one sample per rank and at most the
        size of the data set.
        """
        required = self.required(stage, first=first)
        return whole_batch(required, ranks=seen.ranks, dataset_size=seen.dataset_size, least=1)

    def next_larger(self, stage: int, *, first: int, seen: Measurement) -> int | None:
        """Return the next stage with a larger batch size in whole samples, or None if no later
        stage is larger.

        If the factors are close to 1, neighboring stages may have the same size: 8 x 1.05 and 8 x
        1.1 both give 9 samples.

        Args:
            stage, first, seen: Stage, first batch size and measurement, as in `size`.
        """
        now = self.size(stage, first=first, seen=seen)
        later = range(stage + 1, len(self.batch))
        larger = (m for m in later if self.size(m, first=first, seen=seen) > now)
        return next(larger, None)

    def last_smaller(self, stage: int, *, first: int, seen: Measurement) -> int | None:
        """Return the last earlier stage with a smaller batch size in whole samples, or None if no
        earlier stage is smaller.

        Args:
            stage, first, seen: Stage, first batch size and measurement, as in `size`.
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
    """Return stages in which batch size and learning rate grow by constant factors.

    >>> growing_stages(4, delta=2, gamma=1.5, most=4)
    Stages(batch=(1.0, 2.0, 4.0, 4.0), lr=(1.0, 1.5, 2.25, 2.25), of=None)

    Args:
        count: Number of stages, at least 1.
        delta: Factor on the batch size from stage to stage, above 0.
        gamma: Factor on the learning rate from stage to stage, above 0. To end at the factor
            `max_lr`, pass gamma = max_lr ** (1 / (count - 1)).
        most: Largest factor on the first batch size, at least 1.
        rate_goes_on: Whether the learning rate keeps growing in the stages whose batch size `most`
            limits. In one of the authors' two programs the learning rate keeps growing, in the
            other program it does not.

    Raises:
        ValueError: If a number is out of its range, or if a factor overflows.

    Reference: Umeda, Iiduka, 2024, arXiv 2409.08770; Umeda, Iiduka, 2025, arXiv 2508.05297.
    """
    if count < 1 or not 0.0 < delta < math.inf or not 0.0 < gamma < math.inf or not most >= 1.0:
        raise ValueError(
            f"stages={count}, delta={delta!r}, gamma={gamma!r} and most={most!r} were given, but "
            "stages and most must be at least 1, and delta and gamma above 0. "
            "Example: lb.methods.growth(stages=5, delta=2.0, gamma=1.4)"
        )
    batch = [_power(delta, m) for m in range(count)]
    reached = max(m for m in range(count) if batch[m] <= most)
    lr = [_power(gamma, m if rate_goes_on else min(m, reached)) for m in range(count)]
    if not all(0.0 < factor < math.inf for factor in (*batch, *lr)):
        raise ValueError(
            f"{count} stages with delta={delta!r} and gamma={gamma!r} exceed the range of "
            "floating-point numbers. Use fewer stages: stages=5"
        )
    return Stages(
        batch=tuple([min(factor, float(most)) for factor in batch]),
        lr=() if gamma == 1.0 else tuple(lr),
    )


def linear_stages(count: int, *, step: float, most: float = math.inf) -> Stages:
    """Return stages in which the batch grows by the same number of samples from stage to stage.

    >>> linear_stages(3, step=0.5)
    Stages(batch=(1.0, 1.5, 2.0), lr=(), of=None)

    Args:
        count: Number of stages, at least 1.
        step: Number of samples that each stage adds, as a fraction of the first batch size, above
            0.
        most: Largest factor on the first batch size, at least 1.

    Raises:
        ValueError: If a number is out of its range.

    Reference: Umeda, Iiduka, 2025, arXiv 2508.05297.
    """
    if count < 1 or not 0.0 < step < math.inf or not most >= 1.0:
        raise ValueError(
            f"stages={count}, step={step!r} and most={most!r} were given, but stages and most must "
            "be at least 1, and step above 0. Example: lb.methods.linear_growth(stages=8, step=0.5)"
        )
    return Stages(batch=tuple([min(1.0 + step * m, float(most)) for m in range(count)]))


def _power(base: float, exponent: int) -> float:
    """Return base ** exponent, or infinity if the power overflows."""
    try:
        return float(base) ** exponent
    except OverflowError:
        return math.inf
