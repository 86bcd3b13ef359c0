"""Test whether the batch is large enough: the gradient's error is small compared with its norm.

    variance / B <= eta^2 * |g|^2,      next B = variance / (eta^2 * |g|^2)

The variance is the variance of one sample's gradient, and |g|^2 is the squared norm of the batch's
gradient. If the batch is drawn without replacement from N samples, the left side of the first
formula has the factor (N - B) / (N - 1). The next batch size is the noise scale with |g|^2 as its
denominator, divided by eta^2.

With the unbiased squared norm of the true gradient in place of |g|^2, the test compares the batch
with the noise scale. An estimate of the true gradient's squared norm from a single step may be far
from the true value. The unbiased form of the test therefore keeps running averages and uses the
confidence interval of the noise scale (`MovingMoments`). The unbiased test changes the batch size
only if the interval excludes the current size.

    theta_max = sqrt(variance / (B * |g|^2))

The number theta_max is the smallest eta that passes the test, so runs with different eta can be
compared by theta_max.

Byrd, Chin, Nocedal, Wu: Sample Size Selection in Optimization Methods for Machine Learning,
Mathematical Programming 134(1), 2012. Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for
Adaptive Gradient Methods, 2024, arXiv 2402.11215. The package Cockpit also reports theta_max.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.moving_moments import MovingMoments
from largebatch.core.range import Range
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import (
    Statistic,
    asking,
    by_evidence,
    check_above_zero,
    check_statistic,
    evidence,
    noise_ratio,
    proposal,
    verdict,
)


def required_batch(*, ratio: float, level: float, dataset_size: int | None = None) -> float:
    """Return the smallest batch size B that passes ratio / B * (N - B) / (N - 1) <= level^2, in
    samples. With r = ratio / level^2, the result is r for infinite N and N * r / (r + N - 1) for
    finite N.

    >>> required_batch(ratio=4.0, level=0.5), required_batch(ratio=4.0, level=0.5, dataset_size=16)
    (16.0, 8.25806...)

    Args:
        ratio: Variance of one sample's gradient divided by the squared norm, from 0 to inf.
        level: Level eta of the test, above 0.
        dataset_size: N, if the batch is drawn without replacement from N samples; None if N is
            infinite.
    """
    required = ratio / level / level
    if dataset_size is None:
        return required
    if math.isinf(required):
        return float(dataset_size)
    return dataset_size * (required / (required + dataset_size - 1)) if required else 0.0


def theta_max(*, ratio: float, batch_size: float, dataset_size: int | None = None) -> float:
    """Return sqrt(ratio / B * (N - B) / (N - 1)), the smallest level that passes the test.

    >>> theta_max(ratio=4.0, batch_size=16), theta_max(ratio=math.inf, batch_size=9, dataset_size=9)
    (0.5, 0.0)

    Args:
        ratio: Variance of one sample's gradient divided by the squared norm, from 0 to inf.
        batch_size: Batch size B in samples, above 0.
        dataset_size: N, if the batch is drawn without replacement from N samples; None if N is
            infinite.
    """
    left = 1.0
    if dataset_size is not None:
        left = max(dataset_size - batch_size, 0.0) / max(dataset_size - 1, 1)
    return math.sqrt(ratio / batch_size * left) if left else 0.0


def judged(
    proposed: Decision,
    seen: Measurement,
    *,
    ratio: float | None,
    level: float,
    batch_size: float,
    dataset_size: int | None = None,
    level_name: str = "eta",
) -> Decision:
    """Return the decision with the batch size of `required_batch`, and `theta_max` in its reason.

    If the ratio is unknown, the batch size stays.
    """
    required = theta = None
    if ratio is not None:
        required = required_batch(ratio=ratio, level=level, dataset_size=dataset_size)
        theta = theta_max(ratio=ratio, batch_size=batch_size, dataset_size=dataset_size)
    because = verdict(value=theta, level=level, level_name=level_name)
    return proposal(proposed, seen, required=required, because=because)


@dataclass(frozen=True, slots=True, kw_only=True)
class NormTest(DefaultFacts):
    """Propose the smallest batch that passes the norm test.

    To keep a batch that already passes, as the papers do, add `LimitGrowth(shrink=1.0)` after this
    rule.

    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=2.0, variance=16.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8, moments=m)
    >>> NormTest(eta=0.5).update(None, seen, Decision(next_batch_size=8, base_steps=1))[1].reason
    'theta_max 1 > eta 0.5, test failed; batch size 32'

    If the measured gradient is 0 but the variance is not, no batch size passes. If no batch size
    passes, the rule proposes the whole data set, or `LARGEST` if the size of the data set is
    unknown. If gradient and variance are both 0, and in steps without a measurement, the batch size
    stays.

    With the unbiased denominator, the batch size stays until four steps were measured. After four
    measured steps, the batch size changes only if it lies outside the confidence interval, and the
    reason of each decision contains the estimate and the interval.

    Args:
        eta: Largest allowed ratio of the gradient's error to its norm, above 0. The required batch
            grows as 1 / eta^2.
        denominator: "plug-in" is |g|^2 of the batch's gradient, as in the authors' program. On
            average |g|^2 contains variance / B, so one "plug-in" test rarely asks for more than B /
            eta^2. "unbiased" is the squared norm of the true gradient, from running averages.
        finite_population: Whether the batch is drawn without replacement from the data set. If the
            batch is drawn without replacement, the whole data set always passes.
        statistic: "moments" for the raw gradient (SGD), or "preconditioned_moments" for the
            gradient divided as the optimizer divides it (Adam, Adagrad).

    Raises:
        ValueError: If `eta` is not above 0, or if the denominator or the statistic is unknown.

    Reference: Byrd, Chin, Nocedal, Wu, Mathematical Programming 134(1), 2012; Lau, Liu, Kolar,
    2024, arXiv 2402.11215.
    """

    eta: float = 0.5
    denominator: Literal["plug-in", "unbiased"] = "plug-in"
    finite_population: bool = False
    statistic: Statistic = "moments"

    changes = frozenset({"batch"})
    references = ("byrd2012sample", "lau2024adadagrad")

    def __post_init__(self) -> None:
        check_above_zero(self, example="NormTest(eta=0.5)", eta=self.eta)
        if self.denominator not in ("plug-in", "unbiased"):
            raise ValueError(
                f"denominator={self.denominator!r} was given, but denominator must be "
                '"plug-in" or "unbiased". Example: NormTest(denominator="plug-in")'
            )
        check_statistic(self, self.statistic)

    @property
    def needs(self) -> frozenset[str]:
        facts = frozenset({"dataset_size"}) if self.finite_population else frozenset()
        return facts | {self.statistic}

    def init(self) -> MovingMoments | None:
        return None if self.denominator == "plug-in" else MovingMoments()

    def update(
        self, state: MovingMoments | None, seen: Measurement, proposed: Decision
    ) -> tuple[MovingMoments | None, Decision]:
        proposed = asking(proposed, self.needs)
        moments: GradientMoments | None = getattr(seen, self.statistic)
        if moments is None:
            return state, proposed
        # The unbiased variance has the divisor N - 1, and its exact factor would be (N - B) / N. We
        # keep the papers' factor (N - B) / (N - 1), which differs only by 1 in N.
        size = seen.dataset_size if self.finite_population else None
        if self.denominator == "unbiased":
            state = (state or MovingMoments()).add(moments, seen)
            return state, self._tested(state, seen, proposed, size)
        ratio = noise_ratio(variance=moments.variance, sqnorm=moments.batch_sqnorm)
        level, batch_size = self.eta, moments.batch_size
        return state, judged(
            proposed, seen, ratio=ratio, level=level, batch_size=batch_size, dataset_size=size
        )

    def _tested(
        self,
        state: MovingMoments,
        seen: Measurement,
        proposed: Decision,
        dataset_size: int | None,
    ) -> Decision:
        """Return the decision of the test that compares the batch with the noise scale and its
        interval."""
        noise = state.noise_scale(dataset_size=dataset_size)
        if noise is None:
            because = evidence(None, level=self.eta)
            return by_evidence(proposed, seen, required=None, because=because)
        ends = (noise.value, noise.low, noise.high)
        value, low, high = (
            required_batch(ratio=n, level=self.eta, dataset_size=dataset_size) for n in ends
        )
        theta = Range(
            **{
                name: theta_max(
                    ratio=n, batch_size=proposed.next_batch_size, dataset_size=dataset_size
                )
                for name, n in zip(("value", "low", "high"), ends, strict=True)
            }
        )
        required = Range(value=value, low=low, high=high)
        because = evidence(theta, level=self.eta)
        return by_evidence(proposed, seen, required=required, because=because)
