"""Losses in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.rules.losses import MOST, Losses


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


@pytest.mark.parametrize("count", [10, 100, 1000, 10_000])
def test_the_curve_spans_the_first_loss_to_the_last(count: int) -> None:
    curve = of([abs(i / count - 0.4) for i in range(count)]).curve()
    assert curve.x[curve.lowest] == pytest.approx(0.4, abs=0.05)
    assert curve.mean[0] == pytest.approx(0.4, abs=0.03)
    assert curve.mean[-1] == pytest.approx(0.6 - 1 / count, abs=0.03)
