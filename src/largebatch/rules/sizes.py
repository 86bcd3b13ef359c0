"""What the rules that propose a batch share: from the batch that is required to the next one.

Each rule proposes the size that its formula requires, larger or smaller than the batch in hand;
that a batch never shrinks, grows slowly or stays below a cap is for bounds after it
(`LimitGrowth`, `Hysteresis`, `ClampBatch`).
"""

from __future__ import annotations

import math
from numbers import Real

from largebatch.core.decision import Decision, join
from largebatch.core.measurement import STATISTICS, Measurement

LEAST = 2
"""Samples: one alone has no variance, so a batch of one would stay one."""

LARGEST = 2**40
"""Samples, in place of a batch without bound where the data set's size is unknown."""


def noise_ratio(*, variance: float, sqnorm: float) -> float | None:
    """variance / sqnorm, a noise scale in samples; 0 without noise, `inf` with noise alone, None
    where there is neither, or a number is not finite.

    >>> noise_ratio(variance=1.0, sqnorm=0.5), noise_ratio(variance=1.0, sqnorm=0.0)
    (2.0, inf)
    >>> noise_ratio(variance=0.0, sqnorm=0.0)

    Args:
        variance: of one sample; below 0 counts as 0.
        sqnorm: a squared norm, of the batch's gradient or unbiased; below 0 counts as 0.
    """
    if not math.isfinite(variance) or not math.isfinite(sqnorm):
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


def multiple(
    proposed: Decision, seen: Measurement, *, factor: float, plus: float = 0.0
) -> Decision:
    """Return the decision with the batch factor x (plus + noise scale); it stays where the noise
    scale is unknown."""
    if seen.moments is None:
        return proposed
    ratio = noise_ratio(variance=seen.moments.variance, sqnorm=seen.moments.sqnorm)
    if ratio is None:
        return proposal(proposed, seen, required=None, because="noise scale unknown")
    added = f" + {plus:.4g}" if plus else ""
    because = f"noise scale{added} {plus + ratio:.4g} x {factor:.4g}"
    return proposal(proposed, seen, required=factor * (plus + ratio), because=because)


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
