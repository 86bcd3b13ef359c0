"""Turn a required batch size into the next batch size, for all rules that propose a batch.

A rule that tests a single step proposes the size that its formula requires (`proposal`). A rule
that knows a confidence interval of the required size changes the batch only if the current size
lies outside the interval (`by_evidence`). Bounds after the rule decide whether the batch may
shrink, how fast it may grow, and how large it may be (`LimitGrowth`, `Hysteresis`, `ClampBatch`).
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal

from largebatch.core.decision import Decision, join
from largebatch.core.measurement import STATISTICS, Measurement
from largebatch.core.range import Range

Statistic = Literal["moments", "preconditioned_moments"]
"""Moments of the raw gradient, or of the gradient divided as the optimizer divides it."""

LEAST = 2
"""Smallest batch size that a test proposes, in samples. One sample has no variance, so a batch of
one sample could never grow again."""

BEYOND = 2.0
"""Largest ratio between a new batch size and the nearest bound of the interval of the required
size."""

LARGEST = 2**40
"""Batch size in samples that stands for an infinite batch size if the size of the data set is
unknown."""


def noise_ratio(*, variance: float, sqnorm: float) -> float | None:
    """Return variance / sqnorm, a noise scale in samples.

    The result is 0 if the variance is 0, and `inf` if the squared norm is 0. The result is None if
    the noise scale is unknown: if both numbers are 0, if one number is not finite, or if the
    estimate of the squared norm is negative. If the noise dominates, an unbiased estimate of the
    squared norm may be negative by chance, so a negative estimate does not show that the true norm
    is 0.

    >>> noise_ratio(variance=1.0, sqnorm=0.5), noise_ratio(variance=1.0, sqnorm=0.0)
    (2.0, inf)
    >>> noise_ratio(variance=0.0, sqnorm=0.0), noise_ratio(variance=1.0, sqnorm=-0.1)
    (None, None)

    Args:
        variance: Variance of one sample's gradient. A negative value counts as 0.
        sqnorm: Squared norm of the batch's gradient, or an unbiased estimate of the true gradient's
            squared norm.
    """
    if not math.isfinite(variance) or not math.isfinite(sqnorm) or sqnorm < 0.0:
        return None
    if variance <= 0.0:
        return 0.0 if sqnorm > 0.0 else None
    return variance / sqnorm if sqnorm > 0.0 else math.inf


def whole_batch(
    required: float, *, ranks: int = 1, dataset_size: int | None = None, least: int = LEAST
) -> int:
    """Return the required batch size as a whole number of samples.

    The size is rounded up, except for floating-point error: 1.1 x 100 gives 110. The result is at
    least `least`, and at least one sample per rank. The result is at most the size of the data set,
    so an infinite `required` gives the size of the data set.

    >>> whole_batch(15.7), whole_batch(0.0, ranks=4), whole_batch(math.inf, dataset_size=60_000)
    (16, 4, 60000)

    Args:
        required: Required batch size in samples, from 0 to inf.
        ranks: Number of processes that share the batch.
        dataset_size: Number of samples in one epoch; None if unknown.
        least: Smallest batch size in samples.
    """
    most = LARGEST if dataset_size is None else dataset_size
    whole = most if required >= most else math.ceil(required * (1.0 - 1e-12))
    return max(whole, least, ranks)


def proposal(
    proposed: Decision,
    seen: Measurement,
    *,
    required: float | None,
    because: str,
    limit: str = "",
) -> Decision:
    """Return the decision with the required batch size; if `required` is None, the batch size
    stays.

    Args:
        proposed: Decision of the earlier rules of the chain.
        seen: Measurement of this step.
        required: Required batch size in samples, from 0 to inf; None if unknown.
        because: Text for the reason that states what the test found.
        limit: Text for the reason that names what limited the required batch size; "" if nothing
            did.
    """
    if required is None or math.isnan(required):
        return proposed.resized(proposed.next_batch_size, because=because)
    size = whole_batch(required, ranks=seen.ranks, dataset_size=seen.dataset_size)
    limit = "the whole data set" if size == seen.dataset_size else limit
    limits = f", {limit}" if limit else ""
    return proposed.resized(size, because=join(because, f"batch size {size}{limits}"))


def by_evidence(
    proposed: Decision, seen: Measurement, *, required: Range | None, because: str
) -> Decision:
    """Return the decision with the batch size that a confidence interval supports.

    The batch size stays while it lies within the interval of the required size. If the lower bound
    is above the current size, the batch grows to the estimate, but to at most twice the lower
    bound. If the lower bound is infinite, the batch grows to twice its current size. If the upper
    bound is below the current size, the batch shrinks to the estimate, but to no less than half the
    upper bound.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> hand, sure = Decision(next_batch_size=64, base_steps=1), Range(value=300, low=90, high=900)
    >>> by_evidence(hand, seen, required=sure, because="").reason
    'batch size 180, limited to twice the lower bound'

    Args:
        proposed: Decision of the earlier rules of the chain, with the current batch size.
        seen: Measurement of this step.
        required: Required batch size in samples with its interval, from 0 to inf; None if unknown.
        because: Text for the reason that states what the test found.
    """
    now = proposed.next_batch_size
    if required is None:
        return proposed.resized(now, because=join(because, f"batch size {now} stays"))
    value = min(max(required.value, required.low), required.high)
    if required.low > now:
        # If the whole interval of the squared norm is negative, the lower bound is infinite.
        known = math.isfinite(required.low)
        most = BEYOND * (required.low if known else now)
        limit = f"limited to twice the {'lower bound' if known else 'current batch size'}"
        limit = limit if value > most else ""
        size = min(value, most)
        return proposal(proposed, seen, required=size, because=because, limit=limit)
    if required.high < now:
        least = required.high / BEYOND
        limit = "limited to half the upper bound" if value < least else ""
        size = max(value, least)
        return proposal(proposed, seen, required=size, because=because, limit=limit)
    return proposed.resized(now, because=join(because, f"batch size {now} stays"))


def evidence(value: Range | None, *, level: float, name: str = "theta_max") -> str:
    """Return in words what a test with a confidence interval found.

    >>> evidence(Range(value=2.0, low=1.5, high=math.inf), level=1.0)
    'theta_max 2 [1.5, inf] > eta 1, batch too small'
    >>> evidence(Range(value=1.1, low=0.9, high=1.2), level=1.0), evidence(None, level=1.0)
    ('theta_max 1.1 [0.9, 1.2], interval contains eta 1', 'theta_max not known yet')
    """
    if value is None:
        return f"{name} not known yet"
    if value.low > level:
        return f"{name} {value} > eta {level:.4g}, batch too small"
    if value.high < level:
        return f"{name} {value} < eta {level:.4g}, batch too large"
    return f"{name} {value}, interval contains eta {level:.4g}"


def scaled(span: Range, *, factor: float = 1.0, plus: float = 0.0) -> Range:
    """Return factor * (plus + x) for a number x and for both bounds of its interval.

    >>> print(scaled(Range(value=4.0, low=3.0, high=5.0), factor=2.0, plus=1.0))
    10 [8, 12]
    """
    value, low, high = (factor * (plus + one) for one in (span.value, span.low, span.high))
    return Range(value=value, low=low, high=high)


def verdict(
    *, value: float | None, level: float, name: str = "theta_max", level_name: str = "eta"
) -> str:
    """Return in words what a test of a single step found; the test passes if the value is at most
    the level.

    >>> verdict(value=0.71, level=0.5), verdict(value=0.2, level=0.5)
    ('theta_max 0.71 > eta 0.5, test failed', 'theta_max 0.2 <= eta 0.5, test passed')
    >>> verdict(value=None, level=0.5), verdict(value=math.inf, level=0.5)
    ('theta_max unknown', 'theta_max inf > eta 0.5, test failed, squared norm is 0')

    Args:
        value: Smallest level at which the test passes; None if unknown.
        level: Level of the test.
        name: Name of the value in the text.
        level_name: Name of the level in the text.
    """
    if value is None:
        return f"{name} unknown"
    sign, result = ("<=", "passed") if value <= level else (">", "failed")
    found = f"{name} {value:.4g} {sign} {level_name} {level:.4g}, test {result}"
    return f"{found}, squared norm is 0" if math.isinf(value) else found


def asking(proposed: Decision, names: frozenset[str]) -> Decision:
    """Return the decision that also requests the statistics in `names` for the next step."""
    return proposed.measuring(proposed.measure_next | (names & STATISTICS))


def check_above_zero(rule: object, *, example: str, **values: float) -> None:
    """Check that hyper-parameters are finite numbers above 0.

    Args:
        rule: Rule to which the hyper-parameters belong.
        example: Example of a call with valid values, for the error message.
        values: Hyper-parameters by name.

    Raises:
        ValueError: If a hyper-parameter is not a finite number above 0.
    """
    for name, value in values.items():
        if not (isinstance(value, Real) and 0.0 < value < math.inf):
            raise ValueError(
                f"{name}={value!r} was given to {type(rule).__name__}, but {name} must be a finite "
                f"number above 0. Example: {example}"
            )


def check_statistic(rule: object, statistic: str) -> None:
    """Check that a statistic is the moments of the raw or of the preconditioned gradient.

    Raises:
        ValueError: If the statistic is neither "moments" nor "preconditioned_moments".
    """
    if statistic not in ("moments", "preconditioned_moments"):
        raise ValueError(
            f"statistic={statistic!r} was given, but {type(rule).__name__} reads 'moments' (SGD) "
            "or 'preconditioned_moments' (Adam, Adagrad). "
            f'Example: {type(rule).__name__}(statistic="moments")'
        )
