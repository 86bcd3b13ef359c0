"""Losses in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.rules.auto_warm_up.losses import MOST, Losses, fenced


def of(values: list[float]) -> Losses:
    losses = Losses()
    for value in values:
        losses = losses.add(value)
    return losses


@given(st.integers(0, 2000))
def test_every_loss_counts_once_and_few_numbers_are_kept(count: int) -> None:
    losses = of([float(i) for i in range(count)])
    assert losses.recorded == count
    assert len(losses.means) < MOST or count < MOST
    assert sum(losses.means) * losses.width + losses.total == pytest.approx(count * (count - 1) / 2)


def test_means_are_those_of_neighbours() -> None:
    values = list(np.random.default_rng(0).standard_normal(1000))
    losses = of(values)
    whole = len(losses.means) * losses.width
    blocks = np.array(values[:whole]).reshape(-1, losses.width).mean(1)
    np.testing.assert_allclose(losses.means, blocks, atol=1e-12)
    assert losses.total == pytest.approx(sum(values[whole:]))


@given(st.integers(1, 500), st.integers(0, 499))
def test_the_text_of_losses_is_short_and_keeps_the_last_bit(count: int, at: int) -> None:
    values = list(np.random.default_rng(count).standard_normal(count))
    one, same = of(values), of(list(values))
    values[at % count] = 1e-9 + values[at % count]
    assert repr(one) == repr(same) != repr(of(values))
    assert len(repr(one)) < 120


@pytest.mark.parametrize("count", [10, 100, 1000, 10_000])
def test_the_curve_spans_the_first_loss_to_the_last(count: int) -> None:
    curve = of([abs(i / count - 0.4) for i in range(count)]).curve()
    assert curve.x[curve.lowest] == pytest.approx(0.4, abs=0.05)
    assert curve.mean[0] == pytest.approx(0.4, abs=0.03)
    assert curve.mean[-1] == pytest.approx(0.6 - 1 / count, abs=0.03)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=128), st.floats(0.5, 20.0))
def test_a_fence_keeps_the_order_and_all_below_it(values: list[float], fence: float) -> None:
    y = np.array(values)
    inside = fenced(y, fence=fence)
    order = np.argsort(y, kind="stable")
    assert (np.diff(inside[order]) >= 0.0).all()
    assert (inside <= y + 1e-9 * abs(y)).all()
    low, median = np.sort(y)[[len(y) // 4, len(y) // 2]]
    below = y <= median + fence * (median - low)
    np.testing.assert_array_equal(inside[below], y[below])


def test_a_loss_that_doubles_in_each_step_is_a_slope_behind_a_fence() -> None:
    y = np.concatenate([np.linspace(1.0, 0.0, 60), 2.0 ** np.arange(10, 50)])
    steps = np.diff(fenced(y, fence=3.0)[60:])
    np.testing.assert_allclose(steps, np.median(steps), rtol=0.01)


@pytest.mark.parametrize("values", [[2.3], [2.3, 1e9], [0.0] * 9 + [5.0]])
def test_values_that_are_mostly_equal_have_no_fence(values: list[float]) -> None:
    np.testing.assert_array_equal(fenced(np.array(values), fence=3.0), values)
