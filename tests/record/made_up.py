"""A short run for the tests of records: AdaScale on made-up moments."""

from __future__ import annotations

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement, Reading
from largebatch.core.rule import Rule
from largebatch.rules.adascale import AdaScale


def run(
    length: int, *, rule: Rule | None = None, lost: frozenset[int] = frozenset()
) -> list[tuple[Measurement, Decision]]:
    """Return the steps of a run of `length` steps, in which the steps `lost` are not finite."""
    decider = Decider.start(rule or AdaScale(), base_batch_size=64, batch_size=512)
    steps = []
    for step in range(length):
        moments = GradientMoments(
            batch_size=512, parts=8, batch_sqnorm=2.0 / (step + 1), variance=300.0 + step
        )
        reading = Reading(
            samples=512,
            finite=step not in lost,
            loss=float("nan") if step in lost else 1.0 / (step + 1),
            moments=None if step in lost else moments,
        )
        seen = decider.see(reading, base_lr=0.1)
        decider, decision = decider.decide(seen)
        steps.append((seen, decision))
    return steps
