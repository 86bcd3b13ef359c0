"""The tables of the rules whose stages end by a measurement."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.core.measurement import Measurement
from largebatch.rules import FullGradientGrowth
from largebatch.rules.covering_stages import COVERED, FEWEST, LARGEST_RATE, covering_stages
from largebatch.rules.stages import growing_stages


@settings(max_examples=60, deadline=None)
@given(delta=st.floats(1.0015, 1024.0))
def test_the_stages_of_a_trigger_cover_any_data_set(delta: float) -> None:
    table = covering_stages(delta=delta)
    assert table.batch[-1] >= COVERED * (1.0 - 1e-6)
    assert len(table) == FEWEST or table.batch[-2] < COVERED
    stage, first, steps = 0, 16, 0
    data = Measurement(
        step=0, samples=0, base_steps=0.0, batch_size=8, base_batch_size=8, dataset_size=60_000
    )
    while (after := table.next_larger(stage, first=first, seen=data)) is not None:
        stage, steps = after, steps + 1
    assert table.size(stage, first=first, seen=data) == 60_000
    assert steps < len(table)


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0, 3.0, 1024.0])
def test_the_stages_of_a_trigger_are_21_where_they_always_were(delta: float) -> None:
    """So a run of an earlier version resumes with the table that it had."""
    assert covering_stages(delta=delta) == growing_stages(21, delta=delta)
    rated = covering_stages(delta=delta, gamma=1.4)
    assert rated == growing_stages(21, delta=delta, gamma=1.4)


@pytest.mark.parametrize("gamma", [0.01, 0.7, 1.01, 1.4, 10.0, 1e200])
@pytest.mark.parametrize("delta", [1.002, 1.05, 2.0])
def test_the_rates_of_a_trigger_stay_numbers(delta: float, gamma: float) -> None:
    table = covering_stages(delta=delta, gamma=gamma)
    assert len(table.lr) == len(table.batch)
    assert max(table.lr[-1], 1.0 / table.lr[-1]) <= LARGEST_RATE * (1.0 + 1e-9)
    ended = len(table) < len(covering_stages(delta=delta))
    assert ended == (len(covering_stages(delta=delta)) - 1 > 300 / abs(math.log10(gamma)))


def test_a_delta_next_to_1_is_refused_with_one_that_is_not() -> None:
    with pytest.raises(ValueError, match=r"138,638 stages.*delta=1\.0014"):
        covering_stages(delta=1.0001)
    assert len(covering_stages(delta=1.0014)) < 10_000
    for wrong in ({"delta": 0.0}, {"delta": math.inf}, {"delta": 2.0, "gamma": 0.0},
                  {"delta": math.nan}, {"delta": 2.0, "gamma": math.nan}):  # fmt: skip
        with pytest.raises(ValueError, match="delta and gamma above 0"):
            covering_stages(**wrong)


def test_the_default_table_of_full_gradient_growth_covers_any_data_set() -> None:
    assert FullGradientGrowth().stages == covering_stages(delta=2.0, gamma=1.4)
