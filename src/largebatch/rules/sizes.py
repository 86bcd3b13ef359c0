"""What the rules that propose a batch share: from the batch that is required to the next one.

A rule that tests a single step proposes the size that its formula requires (`proposal`). A rule
that knows an interval of the required size changes the batch only if the batch in hand lies outside
of it (`by_evidence`). That a batch never shrinks, grows slowly or stays below a cap is for bounds
after the rule (`LimitGrowth`, `Hysteresis`, `ClampBatch`).
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal

from largebatch.core.decision import Decision, join
from largebatch.core.measurement import STATISTICS, Measurement
from largebatch.core.range import Range

Statistic = Literal["moments", "preconditioned_moments"]
"""Moments of the bare gradient, or of the gradient as the optimizer divides it."""

LEAST = 2
"""Samples: one alone has no variance, so a batch of one would stay one."""

BEYOND = 2.0
"""How far beyond the end of the interval that the batch in hand has left a new batch may lie."""

LARGEST = 2**40
"""Samples, in place of a batch without bound where the data set's size is unknown."""


def noise_ratio(*, variance: float, sqnorm: float) -> float | None:
    """Return variance / sqnorm, a noise scale in samples; 0 without noise, `inf` with noise alone.

    None stands for what is unknown: neither noise nor gradient, a number that is not finite, or a
    negative squared norm. An unbiased estimate is negative by chance if noise dominates, so that is
    no evidence of noise alone.

    >>> noise_ratio(variance=1.0, sqnorm=0.5), noise_ratio(variance=1.0, sqnorm=0.0)
    (2.0, inf)
    >>> noise_ratio(variance=0.0, sqnorm=0.0), noise_ratio(variance=1.0, sqnorm=-0.1)
    (None, None)

    Args:
        variance: of one sample; below 0 counts as 0.
        sqnorm: a squared norm, of the batch's gradient or unbiased.
    """
    if not math.isfinite(variance) or not math.isfinite(sqnorm) or sqnorm < 0.0:
        return None
    if variance <= 0.0:
        return 0.0 if sqnorm > 0.0 else None
    return variance / sqnorm if sqnorm > 0.0 else math.inf


def whole_batch(
    required: float, *, ranks: int = 1, dataset_size: int | None = None, least: int = LEAST
) -> int:
    """The batch of whole samples that a required one asks for.

    Rounded up, but not for what floats miss of a whole number: 1.1 x 100 is 110. At least `least`,
    and one for each rank. At most the data set, which is what a batch without bound means: it has
    no more to tell.

    >>> whole_batch(15.7), whole_batch(0.0, ranks=4), whole_batch(math.inf, dataset_size=60_000)
    (16, 4, 60000)

    Args:
        required: samples, 0 to inf.
        ranks: processes that share the batch.
        dataset_size: samples in one epoch; None where unknown.
        least: samples.
    """
    most = LARGEST if dataset_size is None else dataset_size
    whole = most if required >= most else math.ceil(required * (1.0 - 1e-12))
    return max(whole, least, ranks)


def proposal(
    proposed: Decision, seen: Measurement, *, required: float | None, because: str
) -> Decision:
    """The decision with the required batch; where that is None, the batch stays.

    Args:
        proposed: the decision of the rules before.
        seen: of this step.
        required: samples, 0 to inf.
        because: what was found, for the reason.
    """
    if required is None or math.isnan(required):
        return proposed.resized(proposed.next_batch_size, because=because)
    size = whole_batch(required, ranks=seen.ranks, dataset_size=seen.dataset_size)
    all_of_it = ", the data set" if size == seen.dataset_size else ""
    return proposed.resized(size, because=join(because, f"batch {size}{all_of_it}"))


def by_evidence(
    proposed: Decision, seen: Measurement, *, required: Range | None, because: str
) -> Decision:
    """Return the decision with the batch that the evidence asks for.

    The batch in hand stays as long as it lies within the interval of the required one. If even the
    low end is above it, the batch grows to the estimate, and to twice the low end at most (twice
    the batch in hand if the low end is infinite). If even the high end is below it, the batch
    shrinks to the estimate, and to half the high end at most.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> hand, sure = Decision(next_batch_size=64, base_steps=1), Range(value=300, low=90, high=900)
    >>> by_evidence(hand, seen, required=sure, because="").reason
    'to twice the low end; batch 180'

    Args:
        proposed: the decision of the rules before, with the batch in hand.
        seen: of this step.
        required: samples, 0 to inf; None while it is unknown.
        because: what was found, for the reason.
    """
    now = proposed.next_batch_size
    if required is None:
        return proposed.resized(now, because=join(because, f"batch {now} stays"))
    value = min(max(required.value, required.low), required.high)
    if required.low > now:
        # an interval of negative squared norms has no low end to go by
        end = required.low if math.isfinite(required.low) else now
        most = BEYOND * end
        because = join(because, "to twice the low end" if value > most else "")
        return proposal(proposed, seen, required=min(value, most), because=because)
    if required.high < now:
        least = required.high / BEYOND
        because = join(because, "to half the high end" if value < least else "")
        return proposal(proposed, seen, required=max(value, least), because=because)
    return proposed.resized(now, because=join(because, f"batch {now} stays"))


def evidence(value: Range | None, *, level: float, name: str = "theta_max") -> str:
    """Return what a test with an interval found, in words.

    >>> evidence(Range(value=2.0, low=1.5, high=math.inf), level=1.0)
    'theta_max 2 [1.5, inf] > 1'
    >>> evidence(Range(value=1.1, low=0.9, high=1.2), level=1.0), evidence(None, level=1.0)
    ('theta_max 1.1 [0.9, 1.2], may be 1', 'theta_max not known yet')
    """
    if value is None:
        return f"{name} not known yet"
    found = " >" if value.low > level else " <" if value.high < level else ", may be"
    return f"{name} {value}{found} {level:.4g}"


def scaled(span: Range, *, factor: float = 1.0, plus: float = 0.0) -> Range:
    """Return factor x (plus + number) for a number with its interval.

    >>> print(scaled(Range(value=4.0, low=3.0, high=5.0), factor=2.0, plus=1.0))
    10 [8, 12]
    """
    value, low, high = (factor * (plus + one) for one in (span.value, span.low, span.high))
    return Range(value=value, low=low, high=high)


def verdict(*, value: float | None, level: float, name: str = "theta_max") -> str:
    """What a test found, in words; it passes where the value is at most the level.

    >>> verdict(value=0.71, level=0.5), verdict(value=0.2, level=0.5)
    ('theta_max 0.71 > 0.5', 'theta_max 0.2 <= 0.5')
    >>> verdict(value=None, level=0.5), verdict(value=math.inf, level=0.5)
    ('theta_max unknown', 'theta_max inf > 0.5, noise alone')
    """
    if value is None:
        return f"{name} unknown"
    found = f"{name} {value:.4g} {'<=' if value <= level else '>'} {level:.4g}"
    return f"{found}, noise alone" if math.isinf(value) else found


def asking(proposed: Decision, names: frozenset[str]) -> Decision:
    """The decision that also wants the statistics among these names in the next step."""
    return proposed.measuring(proposed.measure_next | (names & STATISTICS))


def check_above_zero(rule: object, *, example: str, **values: float) -> None:
    """Refuses a hyper-parameter that is no number above 0, or not finite.

    Raises:
        ValueError: naming it, with an example.
    """
    for name, value in values.items():
        if not (isinstance(value, Real) and 0.0 < value < math.inf):
            raise ValueError(f"{name} is a number above 0, as in {example}; got {rule}.")


def check_statistic(rule: object, statistic: str) -> None:
    """Refuse a statistic that is not one of the two moments.

    Raises:
        ValueError: with both names.
    """
    if statistic not in ("moments", "preconditioned_moments"):
        raise ValueError(
            f"{type(rule).__name__} reads 'moments' (SGD) or 'preconditioned_moments' (Adam, "
            f"Adagrad); got {type(rule).__name__}(statistic={statistic!r})."
        )
