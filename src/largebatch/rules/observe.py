"""Measure and record statistics without changing the training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from largebatch.core.decision import Decision
from largebatch.core.measurement import STATISTICS, Measurement
from largebatch.core.rule import DefaultFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe(DefaultFacts):
    """Request statistics in each step and change nothing.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> proposed = Decision(next_batch_size=64, base_steps=1)
    >>> sorted(Observe().update(None, seen, proposed)[1].measure_next)
    ['moments']

    Args:
        statistics: Names of the statistics to measure, from
            `largebatch.core.measurement.STATISTICS`.

    Raises:
        ValueError: If a statistic is unknown, or if `statistics` is not a tuple.

    Reference: none.
    """

    statistics: tuple[str, ...] = ("moments",)

    references = ()

    def __post_init__(self) -> None:
        if not isinstance(self.statistics, tuple) or not self.needs <= STATISTICS:
            raise ValueError(
                f"statistics={self.statistics!r} was given, but it must be a tuple of names from "
                f'{sorted(STATISTICS)}. Example: Observe(statistics=("moments",))'
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.statistics)

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, replace(proposed, measure_next=proposed.measure_next | self.needs)
