"""Watching: statistics are measured and recorded, and training stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from largebatch.core.decision import Decision
from largebatch.core.measurement import STATISTICS, Measurement
from largebatch.core.rule import DefaultFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe(DefaultFacts):
    """Asks for statistics in each step and changes nothing.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> proposed = Decision(next_batch_size=64, base_steps=1)
    >>> sorted(Observe().update(None, seen, proposed)[1].measure_next)
    ['moments']

    Args:
        statistics: names of what to measure, see `largebatch.core.measurement.STATISTICS`.

    Raises:
        ValueError: an unknown statistic.

    Reference: none.
    """

    statistics: tuple[str, ...] = ("moments",)

    def __post_init__(self) -> None:
        if not isinstance(self.statistics, tuple) or not self.needs <= STATISTICS:
            raise ValueError(
                f"Observe takes a tuple of statistics among {sorted(STATISTICS)}, as in "
                f'Observe(statistics=("moments",)); got {self.statistics!r}.'
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.statistics)

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, replace(proposed, measure_next=proposed.measure_next | self.needs)
