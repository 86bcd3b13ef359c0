"""The tables of batches and rates that the rules of growth share."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.measurement import Budget, Measurement
from largebatch.rules.factors import StepDecay
from largebatch.rules.growth_from_decay import growth_from_decay
from largebatch.rules.stages import (
    Stages,
    fractions_of,
    growing_stages,
    linear_stages,
)


def seen(*, dataset_size: int | None = None, ranks: int = 1) -> Measurement:
    return Measurement(
        step=0, samples=0, base_steps=0.0, batch_size=8, base_batch_size=8, ranks=ranks,
        dataset_size=dataset_size,
    )  # fmt: skip


@given(
    delta=st.floats(0.8, 2.5),
    count=st.integers(1, 40),
    first=st.integers(1, 100),
    size=st.none() | st.integers(1, 300),
    ranks=st.integers(1, 4),
)
def test_the_next_larger_stage_is_that_of_a_loop_over_sizes(
    delta: float, count: int, first: int, size: int | None, ranks: int
) -> None:
    table, at = growing_stages(count, delta=delta), seen(dataset_size=size, ranks=ranks)
    sizes = [table.size(m, first=first, seen=at) for m in range(count)]
    for stage in range(count):
        found = None
        for m in range(count - 1, stage, -1):
            if sizes[m] > sizes[stage]:
                found = m
        assert table.next_larger(stage, first=first, seen=at) == found


def test_stages_of_one_size_are_passed() -> None:
    table = growing_stages(5, delta=1.05)
    sizes = [table.size(m, first=8, seen=seen()) for m in range(5)]
    assert sizes == [8, 9, 9, 10, 10]
    assert table.next_larger(1, first=8, seen=seen()) == 3
    assert table.next_larger(3, first=8, seen=seen()) is None
    assert table.next_larger(0, first=8, seen=seen(dataset_size=8)) is None


# whole samples that floats miss


@pytest.mark.parametrize("first", [10, 50, 100, 1000])
@pytest.mark.parametrize("tenths", [1, 2, 3, 7])
def test_tables_of_tenths_have_the_whole_numbers_that_they_mean(first: int, tenths: int) -> None:
    linear = linear_stages(8, step=tenths / 10)
    for m in range(8):
        assert linear.size(m, first=first, seen=seen()) == first + m * tenths * first // 10
    growing = growing_stages(3, delta=1.0 + tenths / 10)
    for m in range(3):
        exact = Fraction(10 + tenths, 10) ** m * first
        assert growing.size(m, first=first, seen=seen()) == math.ceil(exact)
    absolute = Stages(batch=(1.0, 1.0 + tenths / 10), of=first)
    assert absolute.size(1, first=first, seen=seen()) == first + tenths * first // 10


@pytest.mark.parametrize("part", [0.1, 0.2, 0.3, 0.7, 0.9])
def test_a_decay_that_is_traded_for_growth_gives_whole_batches(part: float) -> None:
    stages = growth_from_decay(StepDecay(at=(0.5,), factor=part)).stages
    exact = Fraction(900, round(10 * part)) * 10
    assert stages.size(1, first=900, seen=seen()) == math.ceil(exact)


@pytest.mark.parametrize("length", [0.1, 0.3, 0.7, 1.1, 1e-3])
@pytest.mark.parametrize("count", [3, 7, 10, 13])
def test_equal_lengths_end_at_the_parts_of_the_clock(length: float, count: int) -> None:
    """A float sum of three tenths is above the clock at 300 of 1000 samples: one step late."""
    ends = fractions_of((length,) * count)
    budget = Budget(samples=1000 * count)
    for k, end in enumerate(ends, start=1):
        assert end == budget.used(step=0, samples=1000 * k, base_steps=0.0)
