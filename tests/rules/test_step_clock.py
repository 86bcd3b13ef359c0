"""The clock that counts optimizer steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decider import Decider
from largebatch.core.measurement import Budget, Reading
from largebatch.core.rule import Rule, chain
from largebatch.rules import LinearScaling, StepClock


def steps_taken(rule: Rule, *, batches: list[int]) -> list[float]:
    decider = Decider.start(
        rule, base_batch_size=64, batch_size=64, budget=Budget(base_steps=100.0)
    )
    clock = []
    for samples in batches:
        decider, _ = decider.decide(decider.see(Reading(samples=samples), base_lr=0.1))
        clock.append(decider.base_steps)
    return clock


@given(batches=st.lists(st.integers(1, 10_000), max_size=20))
def test_every_step_counts_one_whatever_its_size(batches: list[int]) -> None:
    expected = [float(i + 1) for i in range(len(batches))]
    assert steps_taken(chain(LinearScaling(), StepClock()), batches=batches) == expected


def test_without_a_step_clock_a_step_counts_its_scale() -> None:
    assert steps_taken(chain(), batches=[64, 128, 32]) == [1.0, 3.0, 3.5]
