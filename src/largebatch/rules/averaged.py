"""Wrap a rule so that it sees running averages of the gradient's moments.

    variance = mean of the variances,    sqnorm = mean of the unbiased squared norms

McCandlish, Kaplan, Amodei, OpenAI Dota Team: An Empirical Model of Large-Batch Training, 2018,
arXiv 1812.06162, appendix A.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.moving_moments import WINDOW, MovingMoments, averaged_moments
from largebatch.core.rule import InnerFacts, Rule, chain, name_of


@dataclass(frozen=True, slots=True)
class Averaged(InnerFacts):
    """Pass averaged moments to a rule, in the steps that measure them.

    `AdaScale` and the rules that compare the batch with the noise scale keep running averages
    themselves. If `Averaged` wraps a rule that keeps running averages itself, the rule uses the
    averages of `Averaged` instead, so `Averaged` only changes the window. A rule that reads the
    squared norm of the batch's gradient, such as `NormTest(denominator="plug-in")`, gets sqnorm +
    variance / B, computed from the averages and the current batch size B.

    >>> from largebatch.rules.adascale import AdaScale
    >>> rule = Averaged(AdaScale(), window=500.0)
    >>> m = GradientMoments(batch_size=256, parts=4, batch_sqnorm=2.0, variance=256.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64, moments=m)
    >>> rule.update(rule.init(), seen, Decision(next_batch_size=256, base_steps=4))[1].lr_multiplier
    2.5

    Args:
        rule: A rule that reads the `statistic`. All other statistics, and `batch_sqnorm` of the
            measurement, keep the values of the single step.
        window: Length of the averages in base batches. The averages contain at least eight
            measurements.
        statistic: "moments" or "preconditioned_moments".

    Raises:
        ValueError: If the rule does not read the statistic, or if the window is not above 0.

    Reference: McCandlish et al., 2018, arXiv 1812.06162, appendix A.1.
    """

    rule: Rule
    window: float = field(default=WINDOW, kw_only=True)
    statistic: Literal["moments", "preconditioned_moments"] = field(default="moments", kw_only=True)

    references = ("mccandlish2018empirical",)

    def __post_init__(self) -> None:
        chain(self.rule)
        known = ("moments", "preconditioned_moments")
        if self.statistic not in known or self.statistic not in self.rule.needs:
            read = [name for name in known if name in self.rule.needs]
            use = f'Averaged(rule, statistic="{read[0]}")' if read else "the rule without Averaged"
            raise ValueError(
                f"Averaged(statistic={self.statistic!r}) was given, but {name_of(self.rule)} does "
                f"not read this statistic. Use {use}."
            )
        if not 0.0 < self.window < math.inf:
            raise ValueError(
                f"window={self.window!r} was given, but the window must be above 0 and finite. "
                "Example: Averaged(rule, window=1000)"
            )

    def init(self) -> tuple[MovingMoments, Any]:
        return MovingMoments(), self.rule.init()

    def update(
        self, state: tuple[MovingMoments, Any], seen: Measurement, proposed: Decision
    ) -> tuple[tuple[MovingMoments, Any], Decision]:
        own, inner = state
        moments: GradientMoments | None = getattr(seen, self.statistic)
        if moments is not None:
            own = own.add(moments, seen, window=self.window)
            shown: Any = {self.statistic: averaged_moments(moments, past=own)}
            seen = replace(seen, **shown)
        inner, decision = self.rule.update(inner, seen, proposed)
        return (own, inner), decision
