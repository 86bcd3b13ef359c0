"""The coordinate-wise norm test, for optimizers that divide each coordinate by its own size.

    variance_j / B <= eta^2 g_j^2 for every j,      next B = max_j variance_j / (eta^2 g_j^2)

is the condition of AdAdaGrad's theory. One coordinate whose mean is near 0, as a dead
unit's, makes it infinite; so by default it is relaxed to the norm test of the gradient divided by
p_j = sqrt(v_j) + eps, as the optimizer sees it:

    sum_j variance_j / p_j^2 <= eta^2 B sum_j g_j^2 / p_j^2

Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods, 2024, arXiv
2402.11215; their program has no coordinate-wise test. The relaxation is ours, with the gradient
divided as in Qiao et al., Pollux, 2020, arXiv 2008.12260.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.norm_test import NormTest, judged
from largebatch.rules.sizes import asking, check_above_zero


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinateNormTest(DefaultFacts):
    """Proposes the least batch that passes the coordinate-wise norm test, or its relaxation.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8,
    ...     coordinate_noise_scale=50.0)
    >>> rule = CoordinateNormTest(eta=0.5, statistic="coordinate_noise_scale")
    >>> rule.update(None, seen, Decision(next_batch_size=8, base_steps=1))[1].reason
    'theta_max 2.5 > 0.5; batch 200'

    What has no bound, and what is unknown, is as in `NormTest`.

    Args:
        eta: above 0; the batch grows by its inverse square.
        statistic: "preconditioned_moments" (Adam, Adagrad): the norm test as the optimizer sees the
            gradient. Or "coordinate_noise_scale": the strict form over the maximum, or over a
            quantile of the coordinates, of which the meter's statistic knows:
            `lb.measure.CoordinateNoiseScale(quantile=0.9)`.

    Raises:
        ValueError: an eta that is not above 0, or an unknown statistic.

    Reference: Lau et al., 2024, arXiv 2402.11215.
    """

    eta: float = 0.5
    statistic: Literal["preconditioned_moments", "coordinate_noise_scale"] = (
        "preconditioned_moments"
    )

    changes = frozenset({"batch"})

    def __post_init__(self) -> None:
        check_above_zero(self, example="CoordinateNormTest(eta=0.5)", eta=self.eta)
        if self.statistic not in ("preconditioned_moments", "coordinate_noise_scale"):
            raise ValueError(
                "CoordinateNormTest reads 'preconditioned_moments' or 'coordinate_noise_scale'; "
                f"got CoordinateNormTest(statistic={self.statistic!r})."
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.statistic})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        if self.statistic == "preconditioned_moments":
            relaxed = NormTest(eta=self.eta, statistic=self.statistic)
            return None, relaxed.update(None, seen, proposed)[1]
        proposed = asking(proposed, self.needs)
        scale = seen.coordinate_noise_scale
        if scale is None:
            return state, proposed
        ratio = None if math.isnan(scale) else max(scale, 0.0)
        size = seen.batch_size
        return state, judged(proposed, seen, ratio=ratio, level=self.eta, batch_size=size)
