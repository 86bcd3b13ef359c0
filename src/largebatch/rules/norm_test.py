"""The norm test: the batch is large enough where the gradient's error is small beside its norm.

    variance / B <= eta^2 |g|^2,        next B = variance / (eta^2 |g|^2)

with the variance of one sample's gradient and |g|^2 the squared norm of the batch's. Without
replacement from N samples the left side has the factor (N - B) / (N - 1). The next batch is the
noise scale with |g|^2 as its denominator, divided by eta^2.

With the unbiased squared norm of the true gradient in place of |g|^2 the test is against the noise
scale itself. One step's estimate of it may be far off, so then the test has a memory and uses the
interval of the noise scale (`MovingMoments`): the batch changes only if that excludes it.

    theta_max = sqrt(variance / (B |g|^2))

is the least eta that passes, so it needs no threshold to be read.

Byrd, Chin, Nocedal, Wu: Sample Size Selection in Optimization Methods for Machine Learning, 2012.
Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods, 2024, arXiv
2402.11215. Reporting theta_max is Cockpit's.
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
    """The least batch B that passes ratio / B (N - B) / (N - 1) <= level^2, in samples.

    ratio / level^2 for N infinite, and with r for that, N r / (r + N - 1).

    >>> required_batch(ratio=4.0, level=0.5), required_batch(ratio=4.0, level=0.5, dataset_size=16)
    (16.0, 8.25806...)

    Args:
        ratio: variance of one sample / squared norm, 0 to inf.
        level: eta, above 0.
        dataset_size: N of a sample without replacement; None is infinite.
    """
    required = ratio / level / level
    if dataset_size is None:
        return required
    if math.isinf(required):
        return float(dataset_size)
    return dataset_size * (required / (required + dataset_size - 1)) if required else 0.0


def theta_max(*, ratio: float, batch_size: float, dataset_size: int | None = None) -> float:
    """sqrt(ratio / B (N - B) / (N - 1)), the least level that passes.

    >>> theta_max(ratio=4.0, batch_size=16), theta_max(ratio=math.inf, batch_size=9, dataset_size=9)
    (0.5, 0.0)

    Args:
        ratio: variance of one sample / squared norm, 0 to inf.
        batch_size: B, in samples, above 0.
        dataset_size: N of a sample without replacement; None is infinite.
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
) -> Decision:
    """The decision with `required_batch`, and `theta_max` in its reason; where the ratio is unknown
    the batch stays."""
    required = theta = None
    if ratio is not None:
        required = required_batch(ratio=ratio, level=level, dataset_size=dataset_size)
        theta = theta_max(ratio=ratio, batch_size=batch_size, dataset_size=dataset_size)
    because = verdict(value=theta, level=level)
    return proposal(proposed, seen, required=required, because=because)


@dataclass(frozen=True, slots=True, kw_only=True)
class NormTest(DefaultFacts):
    """Proposes the least batch that passes the norm test.

    `LimitGrowth(shrink=1.0)` after it keeps a batch that passes already, as the papers do.

    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=2.0, variance=16.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8, moments=m)
    >>> NormTest(eta=0.5).update(None, seen, Decision(next_batch_size=8, base_steps=1))[1].reason
    'theta_max 1 > 0.5; batch 32'

    Without a gradient the batch that passes has no bound: the data set, or `LARGEST` if its size is
    unknown. Without gradient and noise, and in a step that did not measure, the batch stays.

    With the unbiased denominator the batch stays until four steps were measured. Then it changes
    only if it lies outside of the interval, and the reason has the estimate and its interval.

    Args:
        eta: above 0; the batch grows by its inverse square.
        denominator: "plug-in", |g|^2 of the batch, as the authors have it: its mean contains
            variance / B, so one test seldom asks for more than B / eta^2. Or "unbiased", of the
            true gradient, over all steps that are not forgotten.
        finite_population: whether the batch is drawn without replacement from the data set; all of
            it then passes always.
        statistic: "moments" of the bare gradient (SGD), or "preconditioned_moments", of the
            gradient as the optimizer divides it (Adam, Adagrad).

    Raises:
        ValueError: an eta that is not above 0, an unknown denominator or statistic.

    Reference: Byrd et al., 2012; Lau et al., 2024, arXiv 2402.11215.
    """

    eta: float = 0.5
    denominator: Literal["plug-in", "unbiased"] = "plug-in"
    finite_population: bool = False
    statistic: Statistic = "moments"

    changes = frozenset({"batch"})

    def __post_init__(self) -> None:
        check_above_zero(self, example="NormTest(eta=0.5)", eta=self.eta)
        if self.denominator not in ("plug-in", "unbiased"):
            raise ValueError(
                'The denominator is "plug-in" or "unbiased", as in '
                f'NormTest(denominator="plug-in"); got {self}.'
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
        # The unbiased variance is that of a population with the divisor N - 1, for which the factor
        # would be (N - B) / N; the papers' is kept, which differs by 1 in N.
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
        """Return the decision of the test against the noise scale and its interval."""
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
