"""Compare running averages with naive versions, and test the interval of their ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.average import Average, Pair

PAIRS = st.lists(
    st.tuples(
        st.tuples(st.floats(0.1, 1e3), st.floats(-1e3, 1e3)),
        st.floats(0.0, 1.0),  # forget
        st.floats(1e-2, 1e2),  # weight
    ),
    min_size=1,
    max_size=20,
)
Seen = list[tuple[Pair, float, float]]


def naive(series: Seen, *, plain: bool) -> tuple[np.ndarray, float, float]:
    """Return (means, total weight, V), computed from the weights of all pairs."""
    weights: list[float] = []
    before = None
    for _, forget, weight in series:
        past = [w if plain else (1.0 - forget) * w for w in weights]
        total = sum(past)
        least = forget if before is None else forget * min(1.0, weight / before)
        if total and weight / (total + weight) < least:
            past = [w / total * weight * (1.0 - least) / least for w in past]
        weights, before = [*past, weight], weight
    pairs = np.array([pair for pair, _, _ in series])
    entered = np.array([weight for _, _, weight in series])
    w = np.array(weights)
    # a pair of the weight e has the covariance C / e, so the sum of w x pair has sum w^2 / e C
    return w @ pairs / w.sum(), float(w.sum()), float((w**2 / entered).sum())


def averaged(series: Seen, *, plain: bool = False) -> Average:
    average = Average()
    for pair, forget, weight in series:
        average = average.add(pair, forget=forget, weight=weight, plain=plain)
    return average


@given(series=PAIRS, plain=st.booleans())
def test_an_average_is_the_weighted_mean_of_all_it_saw(series: Seen, plain: bool) -> None:
    found = averaged(series, plain=plain)
    means, weight, squares = naive(series, plain=plain)
    assert found.values == pytest.approx(tuple(means), rel=1e-6, abs=1e-6)
    assert found.weight == pytest.approx(weight, rel=1e-7)
    assert found.squares == pytest.approx(squares, rel=1e-6)
    assert found.count == len(series)


@given(series=PAIRS)
def test_the_covariance_is_that_of_the_deviations_from_the_means_before(series: Seen) -> None:
    """Return the covariance from deviations relative to x, divided by their expected variance."""
    deviations, weights = [], []
    for at in range(1, len(series)):
        (x, y), total, squares = naive(series[:at], plain=False)
        (new_x, new_y), forget, weight = series[at]
        expected = 1.0 / weight + squares / total**2
        d = np.array([new_x - x, new_y - y]) / x / math.sqrt(expected)
        deviations.append(np.outer(d, d))
        weights = [*[w * (1.0 - forget) for w in weights], 1.0]
    found = averaged(series)
    assert found.degrees == pytest.approx(sum(weights), rel=1e-9)
    if weights:
        c = sum(w * d for w, d in zip(weights, deviations, strict=True)) / sum(weights)
        scale = float(np.abs(c).max())
        assert found.covariance == pytest.approx(
            (c[0, 0], c[0, 1], c[1, 1]), rel=1e-5, abs=1e-7 * scale + 1e-12
        )


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), window=st.integers(1, 20))
def test_the_plain_mean_goes_over_into_an_exponential_average(
    values: list[float], window: int
) -> None:
    average = Average()
    for value in values:
        average = average.add((1.0, value), forget=1.0 / window, plain=True)
    expected = sum(values[:window]) / len(values[:window])
    for value in values[window:]:
        expected += (value - expected) / window
    assert average.values[1] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(
    value=st.floats(-1e300, 1e300),
    forget=st.floats(0.0, 1.0),
    weight=st.floats(1e-6, 1e6),
    plain=st.booleans(),
)
def test_the_first_value_is_the_first_average(
    value: float, forget: float, weight: float, plain: bool
) -> None:
    average = Average().add((value, -value), forget=forget, weight=weight, plain=plain)
    assert average.values == (value, -value)
    assert (average.weight, average.squares) == pytest.approx((weight, weight))


def test_hand_computed_averages() -> None:
    """A quarter is forgotten: weights 3/4 and 1 give (3 x 4 + 4 x 11) / 7 = 8; the mean is 7.5."""
    seen = [((4.0, 4.0), 0.25, 1.0), ((11.0, 11.0), 0.25, 1.0)]
    ema, mean = averaged(seen), averaged(seen, plain=True)
    assert ema.values[0] == pytest.approx(8.0)
    assert (ema.weight, ema.squares) == pytest.approx((1.75, 0.75**2 + 1.0))
    assert mean.values == (7.5, 7.5)


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20), forget=st.floats(0.01, 1))
def test_the_newest_pair_has_the_part_that_is_forgotten_at_least(
    weights: list[float], forget: float
) -> None:
    """Small new weights must not keep old pairs with large weights forever."""
    series = [((1.0, 0.0), forget, weight) for weight in (*weights, weights[-1])]
    series[-1] = ((1.0, 1.0), forget, weights[-1])
    assert averaged(series).values[1] >= forget * (1.0 - 1e-9)


@given(weight=st.floats(1e-6, 0.1), count=st.integers(1, 30), forget=st.floats(0.01, 0.5))
def test_a_single_pair_with_a_small_weight_hardly_counts(
    weight: float, count: int, forget: float
) -> None:
    """A short last batch of an epoch gives a pair with a small weight."""
    series = [((1.0, 0.0), 0.01, 1.0)] * count
    found = averaged([*series, ((1.0, 1.0), forget, weight)]).values[1]
    assert found <= max(weight / (weight + (1.0 - forget) * 1.0), weight * forget) + 1e-9


@given(series=PAIRS, power=st.integers(-20, 20))
def test_the_unit_of_the_weights_and_of_the_numbers_does_not_matter(
    series: Seen, power: int
) -> None:
    plain, unit = averaged(series).ratio(), 2.0**power
    other = averaged([((x * unit, y * unit), f, w * unit) for (x, y), f, w in series]).ratio()
    assert other == plain


@given(pair=st.tuples(st.floats(0.1, 1e3), st.floats(-1e3, 1e3)), count=st.integers(4, 20))
def test_equal_pairs_have_an_interval_without_width(pair: Pair, count: int) -> None:
    found = averaged([(pair, 0.1, 1.0)] * count).ratio()
    assert found is not None
    assert found.low == found.high == pytest.approx(found.value, rel=1e-9, abs=1e-12)
    assert found.value == pytest.approx(pair[1] / pair[0], rel=1e-9)


@given(factors=st.lists(st.floats(0.8, 1.25), min_size=4, max_size=20), ratio=st.floats(-1e3, 1e3))
def test_pairs_that_move_together_leave_their_ratio_certain(
    factors: list[float], ratio: float
) -> None:
    """y - ratio x has no variance; rounding must not make the interval infinite."""
    found = averaged([((f, ratio * f), 0.1, 1.0) for f in factors]).ratio()
    assert found is not None
    assert (found.low, found.high) == pytest.approx((ratio, ratio), rel=1e-5, abs=1e-9)


def test_ratios_beyond_the_root_of_the_largest_float_have_an_interval() -> None:
    found = averaged([((1e-200, 1.0), 0.1, 1.0)] * 5).ratio()
    assert found is not None
    assert found.low == found.high == pytest.approx(1e200)
    wild = averaged([((1e-300, y), 0.1, 1.0) for y in (1.0, 1e5, -1e5, 1.0, 3.0)]).ratio()
    assert wild is not None
    assert wild.low <= wild.value <= wild.high, "none of them is NaN"


def test_one_pair_of_another_magnitude_does_not_end_the_interval_for_ever() -> None:
    series = [((1.0, 1.0), 0.1, 1.0)] * 5 + [((1e250, -1e250), 0.1, 1.0)]
    wild = averaged(series)
    assert all(math.isfinite(one) for one in (*wild.values, *wild.covariance))
    later = averaged(series + [((1.0, 1.0), 0.1, 1.0)] * 20_000).ratio()
    assert later is not None
    assert (later.value, later.high - later.low) == pytest.approx((1.0, 0.0), abs=1e-6)


def test_of_few_pairs_or_of_a_mean_of_zero_nothing_is_said() -> None:
    pairs = [((1.0, 2.0), 0.1, 1.0), ((1.2, 1.9), 0.1, 1.0), ((0.9, 2.2), 0.1, 1.0)]
    assert Average().ratio() is None
    assert averaged(pairs).ratio() is None, "three pairs have 1.9 degrees of freedom"
    assert averaged([*pairs, ((1.0, 2.0), 0.1, 1.0)]).ratio() is not None
    assert averaged([((0.0, 2.0), 0.1, 1.0)] * 9).ratio() is None
    assert averaged([((-1.0, 2.0), 0.1, 1.0)] * 9).ratio() is None


def test_a_denominator_that_may_be_zero_excludes_no_ratio() -> None:
    noisy = [((x, 1.0), 0.1, 1.0) for x in (1.0, 9.0, 0.1, 7.0, 0.2, 8.0)]
    found = averaged(noisy).ratio()
    assert found is not None
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("forget", "count", "uneven"),
    [(0.0, 5, False), (0.0, 30, True), (0.1, 8, False), (0.1, 40, True), (0.1, 40, False)],
)
def test_each_end_is_on_the_right_side_with_the_stated_probability(
    forget: float, count: int, uneven: bool
) -> None:
    """Draw Gaussian pairs with means (1, 0.5) and a covariance proportional to 1 / weight."""
    runs, generator = 3000, np.random.default_rng(count)
    root = np.linalg.cholesky(np.array([[0.04, 0.02], [0.02, 0.09]]))
    below = above = 0
    for _ in range(runs):
        average = Average()
        for at in range(count):
            weight = (1.0, 4.0, 0.5)[at % 3] if uneven else 1.0
            x, y = np.array([1.0, 0.5]) + root @ generator.normal(size=2) / math.sqrt(weight)
            average = average.add((float(x), float(y)), forget=forget, weight=weight)
        found = average.ratio()
        assert found is not None
        assert found.low <= found.value <= found.high
        below += found.low <= 0.5
        above += found.high >= 0.5
    slack = 3.0 * math.sqrt(0.9 * 0.1 / runs)
    for share in (below / runs, above / runs):
        assert 0.9 - slack <= share <= 0.9 + slack + 0.03, share


def test_the_interval_by_hand() -> None:
    """x = 1 for certain, and y with the standard error s: y - t s and y + t s.

    V / W^2 is 1/4, the covariance 4 s^2 and the degrees of freedom 4, where Student's t of a
    one-sided 90 % is 1.5332.
    """
    s = 0.1
    found = Average(
        values=(1.0, 2.0), weight=4.0, squares=4.0, count=5, degrees=4.0,
        covariance=(0.0, 0.0, 4.0 * s * s),
    ).ratio()  # fmt: skip
    assert found is not None
    assert (found.low, found.high) == pytest.approx((2.0 - 1.5332 * s, 2.0 + 1.5332 * s), abs=1e-5)
