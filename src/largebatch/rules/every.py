"""Measuring in some steps only, since a statistic costs time and changes slowly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import InnerFacts, Rule, chain


@dataclass(frozen=True, slots=True)
class Every(InnerFacts):
    """A rule that measures in step 0 and in every `steps`-th step after it.

    In the steps between, the rule still decides, with what it knows, so its learning rate follows
    the batch, and a batch that it proposed stays. What neighbours measure there it does not see: a
    test of the batch is made in its own steps alone.

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
        rule: the rule whose statistics are to be measured less often; a chain is a rule.
        steps: optimizer steps from one measurement to the next, at least 1.

    Raises:
        ValueError: fewer than 1 step, or something that is not a rule.

    Reference: none.
    """

    rule: Rule
    steps: int = field(default=10, kw_only=True)

    def __post_init__(self) -> None:
        chain(self.rule)
        if self.steps < 1:
            raise ValueError(f"steps is at least 1, as in Every(AdaScale(), steps=10); got {self}.")

    def init(self) -> Any:
        return self.rule.init()

    def update(self, state: Any, seen: Measurement, proposed: Decision) -> tuple[Any, Decision]:
        shown = seen.unmeasured() if seen.step % self.steps else seen
        state, decision = self.rule.update(state, shown, proposed)
        if (seen.step + 1) % self.steps:
            decision = decision.measuring(proposed.measure_next)
        return state, decision
