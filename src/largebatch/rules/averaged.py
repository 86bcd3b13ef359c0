"""Smoothing: a rule that sees running averages of the gradient's moments.

    variance = mean of variances,    sqnorm = mean of unbiased squared norms

McCandlish et al., An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162, appendix A.1.
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
    """A rule that sees averaged moments, and none in a step that measured none.

    `AdaScale` and the rules that compare the batch with the noise scale average by themselves. With
    `Averaged` around them they use its averages, so it only sets another window. A rule that reads
    the batch's own squared norm (`NormTest(denominator="plug-in")`) sees that of the averages:
    sqnorm + variance / B for the batch in hand.

    >>> from largebatch.rules.adascale import AdaScale
    >>> rule = Averaged(AdaScale(), window=500.0)
    >>> m = GradientMoments(batch_size=256, parts=4, batch_sqnorm=2.0, variance=256.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64, moments=m)
    >>> rule.update(rule.init(), seen, Decision(next_batch_size=256, base_steps=4))[1].lr_multiplier
    2.5

    Args:
        rule: a rule that reads the `statistic`; other statistics, and the measurement's
            `batch_sqnorm`, stay those of the single step.
        window: length of the averages in base batches; they hold eight measurements at least.
        statistic: "moments" or "preconditioned_moments".

    Raises:
        ValueError: a rule that does not read the statistic, or a window that is not positive.

    Reference: arXiv 1812.06162, appendix A.1.
    """

    rule: Rule
    window: float = field(default=WINDOW, kw_only=True)
    statistic: Literal["moments", "preconditioned_moments"] = field(default="moments", kw_only=True)

    def __post_init__(self) -> None:
        chain(self.rule)
        known = ("moments", "preconditioned_moments")
        if self.statistic not in known or self.statistic not in self.rule.needs:
            read = [name for name in known if name in self.rule.needs]
            use = f'Averaged(rule, statistic="{read[0]}")' if read else "the rule without it"
            raise ValueError(
                f"Averaged smooths {self.statistic!r}, which {name_of(self.rule)} does not read. "
                f"Use {use}."
            )
        if not 0.0 < self.window < math.inf:
            raise ValueError(
                f"The window is above 0, as in Averaged(rule, window=1000); got {self.window!r}."
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
