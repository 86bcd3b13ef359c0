"""Test that a record in memory keeps the same steps as a file."""

from __future__ import annotations

import pytest
from made_up import run

from largebatch.core.protocols import Sink
from largebatch.record import MemoryRecord


def filled(*, maxlen: int | None = None) -> MemoryRecord:
    record = MemoryRecord(maxlen=maxlen)
    sink: Sink = record
    sink.start({"base_batch_size": 64})
    for seen, decision in run(5):
        sink.write(seen, decision)
    sink.close()
    return record


def test_a_memory_record_holds_all_steps_in_order() -> None:
    assert filled().steps == run(5)
    assert filled().header == {"base_batch_size": 64}


@pytest.mark.parametrize("maxlen", [1, 3, 5, 9])
def test_a_bounded_record_keeps_the_last_steps(maxlen: int) -> None:
    assert filled(maxlen=maxlen).steps == run(5)[-maxlen:]


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MemoryRecord(maxlen=0)
