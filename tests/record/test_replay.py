"""Test that replaying a record repeats its decisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Reading
from largebatch.core.rule import Rule, chain
from largebatch.record import JsonlRecord, MemoryRecord, read_record
from largebatch.record.replay_rule import replay
from largebatch.rules.adascale import AdaScale, gain
from largebatch.rules.scaling import LinearScaling

moments = st.builds(
    GradientMoments,
    batch_size=st.just(256),
    parts=st.integers(2, 8),
    batch_sqnorm=st.floats(0, 1e6),
    variance=st.floats(0, 1e6),
)
readings = st.lists(
    st.builds(
        Reading,
        samples=st.integers(1, 1024),
        finite=st.sampled_from([True, True, True, False]),
        moments=st.none() | moments,
    ),
    min_size=1,
    max_size=12,
)


def recorded(rule: Rule, readings: list[Reading]) -> MemoryRecord:
    """Run `rule` on given readings. Only the first reading has moments."""
    moments = GradientMoments(batch_size=256, parts=4, batch_sqnorm=2.0, variance=256.0)
    readings = [replace(readings[0], moments=moments), *readings[1:]]
    record = MemoryRecord()
    decider = Decider.start(rule, base_batch_size=64, batch_size=readings[0].samples)
    for reading in readings:
        seen = decider.see(reading, base_lr=0.1)
        decider, decision = decider.decide(seen)
        record.write(seen, decision)
    return record


@pytest.mark.parametrize(
    "rule", [AdaScale(), AdaScale(clip="first", averaging="mean-then-ema"), LinearScaling()]
)
@given(readings=readings)
def test_the_recorded_rule_decides_as_recorded(rule: Rule, readings: list[Reading]) -> None:
    record = recorded(rule, readings)
    assert replay(rule, record) == [decision for _, decision in record.steps]


def test_a_record_read_from_a_file_replays_to_the_same_bits(tmp_path: Path) -> None:
    steps = [Reading(samples=256, loss=1 / 3)] * 3
    record = recorded(AdaScale(), steps)
    file = JsonlRecord(tmp_path / "run.jsonl")
    file.start({})
    for seen, decision in record.steps:
        file.write(seen, decision)
    file.close()
    assert replay(AdaScale(), read_record(file.path)) == [d for _, d in record.steps]


def test_replaying_with_another_rule_gives_that_rules_decisions() -> None:
    record = recorded(AdaScale(), [Reading(samples=256)])
    (by_hand,) = replay(LinearScaling(), record)
    assert (by_hand.lr_multiplier, by_hand.base_steps) == (4.0, 4.0)
    (recorded_decision,) = [decision for _, decision in record.steps]
    assert recorded_decision.lr_multiplier == gain(scale=4, variance=4.0, sqnorm=1.0) == 2.5


def test_an_empty_record_gives_no_decisions() -> None:
    assert replay(chain(), MemoryRecord()) == []


def test_a_record_from_amid_a_run_is_refused() -> None:
    record = MemoryRecord(maxlen=1)
    for seen, decision in recorded(AdaScale(), [Reading(samples=256)] * 2).steps:
        record.write(seen, decision)
    with pytest.raises(ValueError, match="starts at sample 256"):
        replay(AdaScale(), record)


def test_a_statistic_that_was_never_measured_is_named() -> None:
    record = MemoryRecord()
    seen = Decider.start(LinearScaling(), base_batch_size=64, batch_size=64).see(
        Reading(samples=64), base_lr=0.1
    )
    record.write(seen, Decision(next_batch_size=64, base_steps=1.0))
    with pytest.raises(ValueError, match="needs 'moments'"):
        replay(AdaScale(), record)
