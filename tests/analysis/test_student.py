from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from largebatch.analysis.student import mean_of, t_quantile

REALS = st.floats(-1e6, 1e6)


@given(level=st.floats(0.01, 0.999), degrees=st.integers(1, 200))
def test_the_quantile_is_that_of_scipy(level: float, degrees: int) -> None:
    assert t_quantile(level, degrees=degrees) == pytest.approx(
        stats.t.ppf(0.5 + level / 2, degrees), rel=1e-9
    )


def test_with_many_runs_the_quantile_is_that_of_the_normal_distribution() -> None:
    assert t_quantile(0.95, degrees=100_000) == pytest.approx(stats.norm.ppf(0.975), abs=1e-4)


def test_the_interval_of_three_values_by_hand() -> None:
    mean = mean_of([1.0, 2.0, 6.0])  # s^2 = (4 + 1 + 9) / 2 = 7, s / sqrt(3) = 1.5275
    assert (mean.value, mean.count) == (3.0, 3)
    assert mean.low == pytest.approx(3.0 - 4.302653 * math.sqrt(7 / 3), abs=1e-5)
    assert mean.high == pytest.approx(3.0 + 4.302653 * math.sqrt(7 / 3), abs=1e-5)


def test_a_single_value_has_no_students_interval() -> None:
    mean = mean_of([4.0])
    assert (mean.value, mean.low, mean.high) == (4.0, None, None)


@given(values=st.lists(REALS, min_size=2, max_size=8), shift=REALS)
def test_the_interval_moves_with_its_values(values: list[float], shift: float) -> None:
    mean, moved = mean_of(values), mean_of([v + shift for v in values])
    for a, b in ((mean.low, moved.low), (mean.value, moved.value), (mean.high, moved.high)):
        assert a is not None
        assert b == pytest.approx(a + shift, abs=1e-3, rel=1e-6)
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low <= mean.value <= mean.high
