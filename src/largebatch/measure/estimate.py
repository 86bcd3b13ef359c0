"""Estimate the moments of the gradient without bias from several gradients of one training step.

All functions are pure formulas of floats. A part is a gradient that is measured separately within a
training step, usually the gradient of a micro-batch. Micro-batch i has the gradient g_i and the
weight w_i. The share of micro-batch i in the step's gradient g = sum p_i * g_i is p_i = w_i / W.
The gradient g_i is a mean over u_i units, which are samples or tokens. If one unit's gradient has
the variance v and the mean G, then E|g_i|^2 = |G|^2 + v / u_i. The following equation is exact for
any shares:

    E[ sum p_i |g_i|^2 - |g|^2 ] = v * (sum p_i / u_i - sum p_i^2 / u_i).

If p_i = u_i / U, the right side of the equation is v * (k - 1) / U. If all micro-batches are
equally large, the estimate equals the estimates of AdaScale (Johnson et al., 2020, arXiv
2007.05105) and of McCandlish and others (2018, arXiv 1812.06162, A.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from largebatch.core.measurement import GradientMoments, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Hold number, samples and weights of a step's separately measured gradients, over all ranks.

    Args:
        count: k, the number of separately measured gradients, usually micro-batches.
        samples: N, the number of samples in all separately measured gradients.
        units: U, the sum of u_i, the number of samples or tokens in separately measured gradient i.
        weight: W, the sum of w_i, the weight of separately measured gradient i.
        weight_per_unit: Sum of w_i / u_i (weight / units of separately measured gradient i).
        squared_weight_per_unit: Sum of w_i^2 / u_i (squared weight / units of separately measured
            gradient i).
        source: What the separately measured gradients belong to, such as "micro-batches".
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
        """Return the sums for gradients whose weights equal their units (samples or tokens)."""
        return cls(
            count=count,
            samples=samples,
            units=weight,
            weight=weight,
            weight_per_unit=count,
            squared_weight_per_unit=weight,
            source=source,
        )


@lru_cache(maxsize=64)  # almost every step has the same arguments
def proportional_parts(count: int, samples: float, weight: float, source: Source) -> Parts:
    """Return the result of `Parts.proportional`, and cache it for later steps.

    >>> proportional_parts(2, 8.0, 8.0, "ranks").units
    8.0
    """
    return Parts.proportional(count=count, samples=samples, weight=weight, source=source)


def moments_of_parts(
    parts: Parts, *, mean_sqnorm: float, batch_sqnorm: float
) -> GradientMoments | None:
    """Return the moments from sum p_i * |g_i|^2 and |g|^2, or None without two gradients g_i.

    >>> two = Parts.proportional(count=2, samples=8, weight=8)
    >>> moments_of_parts(two, mean_sqnorm=4.0, batch_sqnorm=3.0).variance
    8.0

    Args:
        parts: Number, samples and weights of the separately measured gradients g_i, usually
            micro-batches.
        mean_sqnorm: Sum of p_i * |g_i|^2, the mean of the micro-batches' squared norms, weighted by
            their shares p_i.
        batch_sqnorm: |sum p_i * g_i|^2, the squared norm of the step's gradient.
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
    """Return what the separately measured gradients of a step belong to, such as 'micro-batches'.

    >>> source_of(ranks=2, parts=8)
    'micro-batches x ranks'
    """
    if ranks == 1:
        return "micro-batches"
    return "ranks" if parts == ranks else "micro-batches x ranks"
