"""Unbiased moments of the gradient from the parts of one step: pure formulas of floats.

Part i has the gradient g_i, enters the step's gradient g = sum p_i g_i with the share p_i (of
weights w_i, p_i = w_i / W) and averages u_i units (samples, or tokens), so for a variance v of one
unit E|g_i|^2 = |G|^2 + v / u_i. Hence, exactly and for any shares,

    E[ sum p_i |g_i|^2 - |g|^2 ] = v * (sum p_i / u_i - sum p_i^2 / u_i).

For p_i = u_i / U that is v (k - 1) / U, and for equal parts the estimator of AdaScale (Johnson et
al., 2020, arXiv 2007.05105) and of McCandlish et al. (2018, arXiv 1812.06162, A.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from largebatch.core.measurement import GradientMoments, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """How the parts of a step enter its gradient, summed over all ranks.

    Args:
        count: k, number of parts.
        samples: N, samples in all parts.
        units: U, sum of u_i.
        weight: W, sum of w_i.
        weight_per_unit: sum of w_i / u_i.
        squared_weight_per_unit: sum of w_i^2 / u_i.
        source: where the parts came from.
    """

    count: int
    samples: float
    units: float
    weight: float
    weight_per_unit: float
    squared_weight_per_unit: float
    source: Source = "micro-batches"

    @classmethod
    def proportional(
        cls, *, count: int, samples: float, weight: float, source: Source = "micro-batches"
    ) -> Parts:
        """Parts whose weights are their units: samples, or tokens when the user gives weights."""
        return cls(
            count=count,
            samples=samples,
            units=weight,
            weight=weight,
            weight_per_unit=count,
            squared_weight_per_unit=weight,
            source=source,
        )


@lru_cache(maxsize=64)  # the same in almost every step
def proportional_parts(count: int, samples: float, weight: float, source: Source) -> Parts:
    """Return `Parts.proportional` of these, made once for the steps that have them in common.

    >>> proportional_parts(2, 8.0, 8.0, "ranks").units
    8.0
    """
    return Parts.proportional(count=count, samples=samples, weight=weight, source=source)


def moments_of_parts(
    parts: Parts, *, mean_sqnorm: float, batch_sqnorm: float
) -> GradientMoments | None:
    """Moments from L = sum p_i |g_i|^2 and B = |g|^2; None with fewer than two parts.

    >>> two = Parts.proportional(count=2, samples=8, weight=8)
    >>> moments_of_parts(two, mean_sqnorm=4.0, batch_sqnorm=3.0).variance
    8.0

    Args:
        parts: how the parts enter the step's gradient.
        mean_sqnorm: sum of p_i |g_i|^2, the shares' mean of the parts' squared norms.
        batch_sqnorm: |sum p_i g_i|^2.
    """
    if parts.count < 2:
        return None
    of_parts = parts.weight_per_unit / parts.weight
    of_batch = parts.squared_weight_per_unit / parts.weight**2
    variance_of_unit = (mean_sqnorm - batch_sqnorm) / (of_parts - of_batch)
    samples_per_unit = parts.samples / parts.units
    return GradientMoments(
        batch_size=samples_per_unit / of_batch,
        parts=parts.count,
        batch_sqnorm=batch_sqnorm,
        variance=variance_of_unit * samples_per_unit,
        source=parts.source,
    )


def source_of(*, ranks: int, parts: int) -> Source:
    """What the parts of a step are.

    >>> source_of(ranks=2, parts=8)
    'micro-batches x ranks'
    """
    if ranks == 1:
        return "micro-batches"
    return "ranks" if parts == ranks else "micro-batches x ranks"
