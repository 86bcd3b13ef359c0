"""Compare rules with the theory, which rules may not import."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch import theory as th
from largebatch.core.formulas import gain_from_noise_scale
from largebatch.rules.any_time_growth import any_time_batch
from largebatch.rules.stages import fractions_of, growing_stages, optimal_ratio

factors = st.floats(1.1, 8.0)


@given(delta=factors, gamma=factors)
def test_the_ratio_of_stages_in_samples_is_that_in_steps_times_the_batchs_growth(
    delta: float, gamma: float
) -> None:
    steps = th.steps_growth_on_relation(batch_growth=delta, lr_growth=gamma)
    assert optimal_ratio(delta=delta, gamma=gamma) == pytest.approx(delta * steps, rel=1e-12)


@given(lr=st.floats(1e-6, 1.0), before=st.floats(0.0, 1e4), c=st.floats(1e-3, 1e6))
def test_the_batch_for_any_time_is_the_same_number(lr: float, before: float, c: float) -> None:
    known = th.any_time_batch_size(lr=lr, lr_sum=before + lr, constant=c)
    assert any_time_batch(coefficient=c, lr=lr, lr_sum=before + lr) == known


@given(delta=factors, gamma=factors, count=st.integers(1, 8))
def test_growing_stages_are_those_of_the_theory(delta: float, gamma: float, count: int) -> None:
    table = growing_stages(count, delta=delta, gamma=gamma)
    first = th.Stage(steps=10, batch_size=64, lr=0.1)
    stages = th.geometric_stages(first, count, batch_growth=delta, lr_growth=gamma)
    for m, stage in enumerate(stages):
        assert table.required(m, first=64) == pytest.approx(stage.batch_size, rel=1e-12)
        assert 0.1 * table.rate(m) == pytest.approx(stage.lr, rel=1e-12)


@given(ratio=factors, count=st.integers(2, 8))
def test_stages_end_where_the_theory_ends_them(ratio: float, count: int) -> None:
    lengths = tuple([ratio**m for m in range(count)])
    *ends, whole = itertools.accumulate(th.stage_lengths(1.0, count, growth=ratio))
    assert fractions_of(lengths) == pytest.approx(ends, rel=1e-9)
    assert whole == pytest.approx(1.0)


@given(noise=st.floats(0.0, 1e6), base=st.floats(1.0, 1e4), scale=st.floats(1.0, 100.0))
def test_the_gain_is_the_ratio_of_the_best_rates_of_sgd(
    noise: float, base: float, scale: float
) -> None:
    rates = [
        th.sgd_rate(batch_size=size, noise_scale=noise, max_lr=1.0) for size in (base, scale * base)
    ]
    gain = gain_from_noise_scale(noise_scale=noise, base_batch_size=base, scale=scale)
    assert math.isclose(gain, rates[1] / rates[0], rel_tol=1e-12)
