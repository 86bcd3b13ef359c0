"""Running averages against their naive twins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.average import Average

SERIES = st.lists(
    st.tuples(st.floats(-1e3, 1e3), st.floats(0.0, 1.0)), min_size=1, max_size=20
)  # (value, keep)


def naive_ema(series: list[tuple[float, float]]) -> tuple[float, float]:
    """(bias-corrected mean, total weight): each value weighs (1 - keep) times later keeps."""
    weights = []
    for _, keep in series:
        weights = [w * keep for w in weights] + [1.0 - keep]
    total = sum(weights)
    mean = sum(w * value for w, (value, _) in zip(weights, series, strict=True))
    return (mean / total if total else series[-1][0]), total


@given(series=SERIES)
def test_an_exponential_average_is_the_weighted_mean_of_all_it_saw(
    series: list[tuple[float, float]],
) -> None:
    average = Average.empty(1)
    for value, keep in series:
        average = average.ema((value,), keep=keep)
    mean, weight = naive_ema(series)
    assert average.values[0] == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert average.weight == pytest.approx(weight, rel=1e-9, abs=1e-12)
    assert average.count == len(series)


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), window=st.integers(1, 20))
def test_the_plain_mean_goes_over_into_an_exponential_average(
    values: list[float], window: int
) -> None:
    keep = 1.0 - 1.0 / window
    average = Average.empty(1)
    for value in values:
        average = average.mean_then_ema((value,), keep=keep)
    expected = sum(values[:window]) / len(values[:window])
    for value in values[window:]:
        expected = keep * expected + (1.0 - keep) * value
    assert average.values[0] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(value=st.floats(-1e300, 1e300), keep=st.floats(0.0, 0.999999))
def test_the_first_value_is_the_first_average(value: float, keep: float) -> None:
    for average in (
        Average.empty(1).ema((value,), keep=keep),
        Average.empty(1).mean_then_ema((value,), keep=keep),
    ):
        assert average.values[0] == value


def test_hand_computed_averages() -> None:
    """Keep 3/4: weights 3/16 and 1/4 give (3 * 4 + 4 * 11) / 7 = 8; the plain mean is 7.5."""
    ema = Average.empty(1).ema((4.0,), keep=0.75).ema((11.0,), keep=0.75)
    assert ema.values[0] == pytest.approx(8.0)
    assert ema.weight == pytest.approx(7 / 16)
    mean = Average.empty(1).mean_then_ema((4.0,), keep=0.75).mean_then_ema((11.0,), keep=0.75)
    assert mean.values == (7.5,)


def test_numbers_that_are_seen_together_are_averaged_alike() -> None:
    average = Average.empty(2).ema((1.0, 10.0), keep=0.5).ema((3.0, 30.0), keep=0.9)
    assert average.values[1] == pytest.approx(10 * average.values[0])


def test_an_average_refuses_another_number_of_values_than_it_has() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Average.empty(2).ema((1.0,), keep=0.5)
