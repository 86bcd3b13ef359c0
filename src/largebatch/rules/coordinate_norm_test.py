"""Test the gradient coordinate by coordinate, for optimizers that divide each coordinate by its
size.

    variance_j / B <= eta^2 * g_j^2 for every j,    next B = max_j variance_j / (eta^2 * g_j^2)

The theory of AdAdaGrad uses this condition. A single coordinate with a mean near 0, such as a
weight of an inactive unit, makes the required batch infinite. Therefore the default is a relaxed
test, the norm test of the gradient divided by p_j = sqrt(v_j) + eps as Adam divides it:

    sum_j variance_j / p_j^2 <= eta^2 * B * sum_j g_j^2 / p_j^2

Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods, 2024, arXiv
2402.11215; the program of these authors has no coordinate-wise test. The relaxed form of the test
is our own. The relaxed test divides the gradient as Pollux does: Qiao, Choe, Subramanya,
Neiswanger, Ho, Zhang, Ganger, Xing, 2020, arXiv 2008.12260.
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
    """Propose the smallest batch that passes the coordinate-wise norm test, or its relaxed form.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8,
    ...     coordinate_noise_scale=50.0)
    >>> rule = CoordinateNormTest(eta=0.5, statistic="coordinate_noise_scale")
    >>> rule.update(None, seen, Decision(next_batch_size=8, base_steps=1))[1].reason
    'theta_max 2.5 > eta 0.5, test failed; batch size 200'

    If the gradient is 0, or if the result of the test is unknown, `CoordinateNormTest` decides as
    `NormTest` does.

    Args:
        eta: Largest allowed ratio of the gradient's error to its norm, above 0. The required batch
            grows as 1 / eta^2.
        statistic: "preconditioned_moments" (Adam, Adagrad) is the relaxed test of the
            preconditioned gradient. "coordinate_noise_scale" is the strict test over the maximum,
            or over a quantile, of the coordinates; the meter sets the quantile:
            `lb.measure.CoordinateNoiseScale(quantile=0.9)`.

    Raises:
        ValueError: If `eta` is not above 0, or if the statistic is unknown.

    Reference: Lau, Liu, Kolar, 2024, arXiv 2402.11215; Qiao et al., 2020, arXiv 2008.12260, for the
    preconditioned gradient.
    """

    eta: float = 0.5
    statistic: Literal["preconditioned_moments", "coordinate_noise_scale"] = (
        "preconditioned_moments"
    )

    changes = frozenset({"batch"})
    references = ("lau2024adadagrad", "qiao2020pollux")

    def __post_init__(self) -> None:
        check_above_zero(self, example="CoordinateNormTest(eta=0.5)", eta=self.eta)
        if self.statistic not in ("preconditioned_moments", "coordinate_noise_scale"):
            raise ValueError(
                f"statistic={self.statistic!r} was given, but CoordinateNormTest reads "
                "'preconditioned_moments' or 'coordinate_noise_scale'. "
                'Example: CoordinateNormTest(statistic="preconditioned_moments")'
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
