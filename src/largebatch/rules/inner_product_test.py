"""The inner-product test: the batch is large enough where its gradient points downhill.

    Var <g_i, g> / B <= theta^2 |g|^4,      next B = Var <g_i, g> / (theta^2 |g|^4)

over single samples' gradients g_i, with g their mean over the batch. The augmented test also bounds
what lies across g,

    Var_orth / B <= nu^2 |g|^2,             next B = Var_orth / (nu^2 |g|^2)

and takes the larger batch. What lies across needs no measurement of its own: with the variance of
one sample's gradient, exactly

    variance = Var <g_i, g> / |g|^2 + Var_orth.

Bollapragada, Byrd, Nocedal: Adaptive Sampling Strategies for Stochastic Optimization, 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.core.decision import Decision, join
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.norm_test import judged, required_batch, theta_max
from largebatch.rules.sizes import asking, check_above_zero, proposal, verdict

NEEDS = frozenset({"moments", "inner_product_variance"})


def inner_product_ratio(*, inner_product_variance: float, sqnorm: float) -> float | None:
    """Var <g_i, g> / |g|^4, in samples; None without a gradient, or where a
    number is not finite.

    >>> inner_product_ratio(inner_product_variance=4.0, sqnorm=2.0)
    1.0

    Args:
        inner_product_variance: Var <g_i, g> over single samples; below 0 counts as 0.
        sqnorm: |g|^2 of the batch's gradient.
    """
    if not sqnorm > 0.0 or not math.isfinite(inner_product_variance):
        return None
    return max(inner_product_variance, 0.0) / sqnorm / sqnorm


def orthogonal_ratio(
    *, variance: float, inner_product_variance: float, sqnorm: float
) -> float | None:
    """Var_orth / |g|^2 = (variance - Var <g_i, g> / |g|^2) / |g|^2, in samples; None without a
    gradient, or where a number is not finite. The two variances may come from other parts of the
    batch, so below 0 counts as 0.

    >>> orthogonal_ratio(variance=4.0, inner_product_variance=4.0, sqnorm=2.0)
    1.0

    Args:
        variance: of one sample's gradient.
        inner_product_variance: Var <g_i, g> over single samples.
        sqnorm: |g|^2 of the batch's gradient.
    """
    if not sqnorm > 0.0 or not math.isfinite(variance - inner_product_variance):
        return None
    return max(variance - max(inner_product_variance, 0.0) / sqnorm, 0.0) / sqnorm


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerProductTest(DefaultFacts):
    """Proposes the least batch that passes the inner-product test, laxer than the norm test.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=2.0, variance=16.0)
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8,
    ...     moments=m, inner_product_variance=16.0)
    >>> rule, proposed = InnerProductTest(theta=0.5), Decision(next_batch_size=8, base_steps=1)
    >>> rule.update(None, seen, proposed)[1].reason
    'theta_max 0.7071 > 0.5; batch 16'

    Without a gradient it is 0/0, and the batch stays; so it does in a step that did not measure.

    Args:
        theta: above 0.

    Raises:
        ValueError: a theta that is not above 0.

    Reference: Bollapragada et al., 2018.
    """

    theta: float = 0.9

    needs = NEEDS
    changes = frozenset({"batch"})

    def __post_init__(self) -> None:
        check_above_zero(self, example="InnerProductTest(theta=0.9)", theta=self.theta)

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        proposed = asking(proposed, self.needs)
        along, _ = _ratios(seen)
        if seen.moments is None or seen.inner_product_variance is None:
            return state, proposed
        size = seen.moments.batch_size
        return state, judged(proposed, seen, ratio=along, level=self.theta, batch_size=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentedInnerProductTest(DefaultFacts):
    """Proposes the least batch that passes the inner-product and the orthogonality test.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=2.0, variance=16.0)
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8,
    ...     moments=m, inner_product_variance=16.0)
    >>> rule = AugmentedInnerProductTest(theta=0.5, nu=0.5)
    >>> rule.update(None, seen, Decision(next_batch_size=8, base_steps=1))[1].reason
    'theta_max 0.7071 > 0.5; nu_max 0.7071 > 0.5; batch 16'

    Args:
        theta: of the inner-product test, above 0.
        nu: of the orthogonality test, above 0.

    Raises:
        ValueError: a theta or a nu that is not above 0.

    Reference: Bollapragada et al., 2018.
    """

    # The program of Lau et al. (arXiv 2402.11215) is stricter: 0.1 for both, and .5 and 1 in its
    # example. It also sums both variances over tensors, which leaves out what they have in common.
    theta: float = 0.9
    nu: float = 5.84

    needs = NEEDS
    changes = frozenset({"batch"})

    def __post_init__(self) -> None:
        example = "AugmentedInnerProductTest(theta=0.9, nu=5.84)"
        check_above_zero(self, example=example, theta=self.theta, nu=self.nu)

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        proposed = asking(proposed, self.needs)
        along, across = _ratios(seen)
        if seen.moments is None or seen.inner_product_variance is None:
            return state, proposed
        required = None
        if along is not None and across is not None:
            required = max(
                required_batch(ratio=along, level=self.theta),
                required_batch(ratio=across, level=self.nu),
            )
        because = join(
            _found(along, seen, level=self.theta, name="theta_max"),
            _found(across, seen, level=self.nu, name="nu_max"),
        )
        return state, proposal(proposed, seen, required=required, because=because)


def _ratios(seen: Measurement) -> tuple[float | None, float | None]:
    moments, variance = seen.moments, seen.inner_product_variance
    if moments is None or variance is None:
        return None, None
    sqnorm = moments.batch_sqnorm
    along = inner_product_ratio(inner_product_variance=variance, sqnorm=sqnorm)
    across = orthogonal_ratio(
        variance=moments.variance, inner_product_variance=variance, sqnorm=sqnorm
    )
    return along, across


def _found(ratio: float | None, seen: Measurement, *, level: float, name: str) -> str:
    """What a test found: its least level that passes."""
    assert seen.moments is not None
    size = seen.moments.batch_size
    value = None if ratio is None else theta_max(ratio=ratio, batch_size=size)
    return verdict(value=value, level=level, name=name)
