"""Measure only in some steps, because a measurement takes time and a statistic changes slowly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from largebatch.core.codec import LATER
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.number_checks import is_count
from largebatch.core.rule import InnerFacts, Rule, chain


@dataclass(frozen=True, slots=True)
class Every(InnerFacts):
    """Let a rule measure only in step 0 and in every `steps`-th step after step 0.

    The rule also measures in each of the first `first` steps, so that running averages are known
    early. In steps without a measurement, the rule still decides by its earlier measurements. The
    rule's learning rate therefore follows the batch size in every step, and a batch size that the
    rule proposed remains. In steps without its own measurement, the rule does not see the
    measurements of other rules, so the rule tests the batch only when the rule itself measures.

    >>> from largebatch.rules.observe import Observe
    >>> rule, wanted = Every(Observe(), steps=3), []
    >>> for step in range(6):
    ...     seen = Measurement(
    ...         step=step, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    ...     decision = rule.update(None, seen, Decision(next_batch_size=64, base_steps=1))[1]
    ...     wanted.append(len(decision.measure_next))  # in step + 1
    >>> wanted
    [0, 0, 1, 0, 0, 1]

    Args:
        rule: The rule, or chain of rules, whose statistics are measured less often.
        steps: Number of optimizer steps from one measurement to the next, at least 1.
        first: Number of optimizer steps at the start of the run that are all measured, 0 or more.

    Raises:
        ValueError: If `steps` is not a whole number of at least 1, if `first` is not a whole number
            of at least 0, or if `rule` is not a rule.

    Reference: none.
    """

    rule: Rule
    steps: int = field(default=10, kw_only=True)
    first: int = field(default=0, kw_only=True, metadata=LATER)

    def __post_init__(self) -> None:
        chain(self.rule)
        for name, value, least in (("steps", self.steps, 1), ("first", self.first, 0)):
            if not is_count(value, least=least):
                raise ValueError(
                    f"{name}={value!r} was given, but {name} must be a whole number of optimizer "
                    f"steps, {least} or more. Example: lb.Every(lb.AdaScale(), steps=10, first=10)"
                )

    def init(self) -> Any:
        return self.rule.init()

    def update(self, state: Any, seen: Measurement, proposed: Decision) -> tuple[Any, Decision]:
        shown = seen if self._measures(seen.step) else seen.unmeasured()
        state, decision = self.rule.update(state, shown, proposed)
        if not self._measures(seen.step + 1):
            decision = decision.measuring(proposed.measure_next)
        return state, decision

    def _measures(self, step: int) -> bool:
        return step < self.first or step % self.steps == 0
