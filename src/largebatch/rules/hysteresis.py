"""A bound that remembers: the batch grows when several of the last tests asked for it.

One test may see a gradient that is small by chance, and a batch that never shrinks keeps what it
then got.
"""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class HysteresisState:
    """Whether each of the last tests asked for a larger batch, the newest last."""

    larger: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hysteresis(DefaultFacts):
    """Holds the next batch at the one in hand until `asked` of the last `of` tests proposed more.

    A test is a step that measured. Where neighbours measure in other steps, too, it stands with its
    test inside of `Every`: `Every(chain(NormTest(), Hysteresis()), steps=10)`. After the batch grew
    the tests count anew, since they were of another batch.

    >>> from largebatch.core.measurement import GradientMoments
    >>> m = GradientMoments(batch_size=64, parts=4, batch_sqnorm=1.0, variance=1.0)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64, moments=m)
    >>> rule, proposed = Hysteresis(asked=2, of=3), Decision(next_batch_size=128, base_steps=1)
    >>> state, decision = rule.update(rule.init(), seen, proposed)
    >>> decision.reason, rule.update(state, seen, proposed)[1].next_batch_size
    ('batch 128 held at 64, 1 of 2 tests', 128)

    Args:
        asked: tests that must propose more than the batch in hand, at least 1.
        of: the last tests that count, at least `asked`.

    Raises:
        ValueError: numbers out of order.

    Reference: none.
    """

    asked: int = 2
    of: int = 3

    bounds = frozenset({"batch"})
    forbids = frozenset({"Hysteresis"})

    def __post_init__(self) -> None:
        if not 1 <= self.asked <= self.of:
            raise ValueError(
                f"Hysteresis takes 1 <= asked <= of, as in Hysteresis(asked=2, of=3); got {self}."
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
        because = f"batch {wanted} held at {now}, {sum(larger)} of {self.asked} tests"
        return HysteresisState(larger=larger), proposed.resized(now, because=because)
