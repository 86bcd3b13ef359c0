"""Test whether the batch is large enough for its gradient to be a descent direction.

    Var <g_i, g> / B <= theta^2 * |g|^4,    next B = Var <g_i, g> / (theta^2 * |g|^4)

The first formula is the inner-product test. The g_i are the gradients of single samples, and g is
the mean of the g_i over the batch. The augmented test also limits the variance orthogonal to g:

    Var_orth / B <= nu^2 * |g|^2,           next B = Var_orth / (nu^2 * |g|^2)

The augmented test proposes the larger of the two batch sizes. The orthogonal variance needs no
measurement of its own. The variance of one sample's gradient is exactly

    variance = Var <g_i, g> / |g|^2 + Var_orth.

Bollapragada, Byrd, Nocedal: Adaptive Sampling Strategies for Stochastic Optimization, SIAM Journal
on Optimization 28(4), 2018.
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
    """Return Var <g_i, g> / |g|^4 in samples, or None if the gradient is 0 or a number is not
    finite.

    >>> inner_product_ratio(inner_product_variance=4.0, sqnorm=2.0)
    1.0

    Args:
        inner_product_variance: Variance of <g_i, g> over single samples. A negative value counts as
            0.
        sqnorm: Squared norm |g|^2 of the batch's gradient.
    """
    if not sqnorm > 0.0 or not math.isfinite(inner_product_variance):
        return None
    return max(inner_product_variance, 0.0) / sqnorm / sqnorm


def orthogonal_ratio(
    *, variance: float, inner_product_variance: float, sqnorm: float
) -> float | None:
    """Return Var_orth / |g|^2 = (variance - Var <g_i, g> / |g|^2) / |g|^2, in samples.

    The result is None if the gradient is 0 or a number is not finite. The two variances may come
    from different samples of the batch, so a negative difference counts as 0.

    >>> orthogonal_ratio(variance=4.0, inner_product_variance=4.0, sqnorm=2.0)
    1.0

    Args:
        variance: Variance of one sample's gradient.
        inner_product_variance: Variance of <g_i, g> over single samples.
        sqnorm: Squared norm |g|^2 of the batch's gradient.
    """
    if not sqnorm > 0.0 or not math.isfinite(variance - inner_product_variance):
        return None
    return max(variance - max(inner_product_variance, 0.0) / sqnorm, 0.0) / sqnorm


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerProductTest(DefaultFacts):
    """Propose the smallest batch that passes the inner-product test, which is weaker than the norm
    test.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=2.0, variance=16.0)
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8,
    ...     moments=m, inner_product_variance=16.0)
    >>> rule, proposed = InnerProductTest(theta=0.5), Decision(next_batch_size=8, base_steps=1)
    >>> rule.update(None, seen, proposed)[1].reason
    'theta_max 0.7071 > theta 0.5, test failed; batch size 16'

    The batch size stays if the batch's gradient is 0, and in steps without a measurement.

    Args:
        theta: Largest allowed relative error of the inner product <g_i, g>, above 0.

    Raises:
        ValueError: If `theta` is not above 0.

    Reference: Bollapragada, Byrd, Nocedal, SIAM Journal on Optimization 28(4), 2018.
    """

    theta: float = 0.9

    needs = NEEDS
    changes = frozenset({"batch"})
    references = ("bollapragada2018adaptive",)

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
        return state, judged(
            proposed, seen, ratio=along, level=self.theta, level_name="theta", batch_size=size
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentedInnerProductTest(DefaultFacts):
    """Propose the smallest batch that passes the inner-product test and the orthogonality test.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=8, parts=4, batch_sqnorm=2.0, variance=16.0)
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8,
    ...     moments=m, inner_product_variance=16.0)
    >>> rule = AugmentedInnerProductTest(theta=0.5, nu=0.5)
    >>> rule.update(None, seen, Decision(next_batch_size=8, base_steps=1))[1].reason
    'theta_max 0.7071 > theta 0.5, test failed; nu_max 0.7071 > nu 0.5, test failed; batch size 16'

    Args:
        theta: Largest allowed relative error of the inner product, above 0.
        nu: Largest allowed error orthogonal to the gradient, as a fraction of the gradient's norm,
            above 0.

    Raises:
        ValueError: If `theta` or `nu` is not above 0.

    Reference: Bollapragada, Byrd, Nocedal, SIAM Journal on Optimization 28(4), 2018.
    """

    # The program of Lau et al. (arXiv 2402.11215) is stricter: it uses 0.1 for both levels, and 0.5
    # and 1 in its example. It also adds up the variances of single tensors, which leaves out the
    # covariances between tensors.
    theta: float = 0.9
    nu: float = 5.84

    needs = NEEDS
    changes = frozenset({"batch"})
    references = ("bollapragada2018adaptive",)

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
            _found(along, seen, level=self.theta, name="theta"),
            _found(across, seen, level=self.nu, name="nu"),
        )
        return state, proposal(proposed, seen, required=required, because=because)


def _ratios(seen: Measurement) -> tuple[float | None, float | None]:
    """Return the ratios along the gradient and orthogonal to the gradient; an unknown ratio is
    None."""
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
    """Describe what a test found, with the smallest level at which the test would pass."""
    assert seen.moments is not None
    size = seen.moments.batch_size
    value = None if ratio is None else theta_max(ratio=ratio, batch_size=size)
    return verdict(value=value, level=level, name=f"{name}_max", level_name=name)
