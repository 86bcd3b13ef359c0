"""Let the batch grow only if several of the last tests asked for a larger batch.

After one test with a gradient that is small by chance, a batch that never shrinks would otherwise
keep a size that is too large.
"""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class HysteresisState:
    """Hold the state of `Hysteresis`.

    Args:
        larger: Whether each of the last tests asked for a larger batch; the newest test is last.
    """

    larger: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hysteresis(DefaultFacts):
    """Keep the batch size until `asked` of the last `of` tests proposed a larger batch.

    A test is a step that measures. If other rules measure in additional steps, put `Hysteresis` and
    its test together inside `Every`: `Every(chain(NormTest(), Hysteresis()), steps=10)`. After the
    batch has grown, the count starts again, because the earlier tests were about another batch.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=64, parts=4, batch_sqnorm=1.0, variance=1.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64, moments=m)
    >>> rule, proposed = Hysteresis(asked=2, of=3), Decision(next_batch_size=128, base_steps=1)
    >>> state, decision = rule.update(rule.init(), seen, proposed)
    >>> decision.reason, rule.update(state, seen, proposed)[1].next_batch_size
    ('batch size 128 held at 64, 1 of 2 required tests asked for growth', 128)

    Args:
        asked: Number of tests that must propose more than the current batch size, at least 1.
        of: Number of the last tests that are counted, at least `asked`.

    Raises:
        ValueError: If 1 <= asked <= of does not hold.

    Reference: none.
    """

    asked: int = 2
    of: int = 3

    bounds = frozenset({"batch"})
    references = ()
    forbids = frozenset({"Hysteresis"})

    def __post_init__(self) -> None:
        if not 1 <= self.asked <= self.of:
            raise ValueError(
                f"{self} was given, but 1 <= asked <= of must hold. "
                "Example: Hysteresis(asked=2, of=3)"
            )

    def init(self) -> HysteresisState:
        return HysteresisState()

    def update(
        self, state: HysteresisState, seen: Measurement, proposed: Decision
    ) -> tuple[HysteresisState, Decision]:
        if seen.unmeasured() is seen:
            return state, proposed
        wanted, now = proposed.next_batch_size, seen.batch_size
        larger = (*state.larger, wanted > now)[-self.of :]
        if wanted <= now:
            return HysteresisState(larger=larger), proposed
        if sum(larger) >= self.asked:
            return HysteresisState(), proposed
        votes = f"{sum(larger)} of {self.asked} required tests asked for growth"
        because = f"batch size {wanted} held at {now}, {votes}"
        return HysteresisState(larger=larger), proposed.resized(now, because=because)
