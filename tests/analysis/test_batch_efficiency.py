import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.analysis.efficiency import (
    batch_table,
    half_efficiency_batch_size,
    paying_batch_size,
    paying_range,
    samples_over_fewest,
    steps_over_fewest,
)
from largebatch.analysis.noise import NoiseEstimate
from largebatch.core.formulas import efficiency, gain_from_noise_scale

noise_scales = st.floats(0.01, 1e7)
batch_sizes = st.integers(1, 1_000_000)


def noise(value=960.0, low=700.0, high=1500.0):
    return NoiseEstimate(
        noise_scale=value, low=low, high=high, steps=400, variance=value, sqnorm=1.0
    )


def ends(numbers):
    return numbers.value, numbers.low, numbers.high


def test_the_row_of_sixteen_base_batches_is_as_computed_by_hand():
    row = batch_table(noise(), 64, [1024])[0]
    assert (row.batch_size, row.scale) == (1024, 16.0)
    assert ends(row.lr_multiplier) == pytest.approx(
        (16 * 1024 / 1984, 16 * 764 / 1724, 16 * 1564 / 2524)
    )
    assert ends(row.steps) == pytest.approx((1984 / 16384, 2524 / 25024, 1724 / 12224))
    assert ends(row.samples) == pytest.approx((1984 / 1024, 2524 / 1564, 1724 / 764))


def test_the_base_batch_costs_and_saves_nothing():
    row = batch_table(noise(), 64, [64])[0]
    for numbers in (row.lr_multiplier, row.steps, row.samples):
        assert ends(numbers) == (1.0, 1.0, 1.0)


def test_without_upper_end_the_table_reaches_the_perfect_gain():
    row = batch_table(noise(value=math.inf, low=960.0, high=math.inf), 64, [1024])[0]
    assert ends(row.lr_multiplier) == pytest.approx((16.0, 16 * 1024 / 1984, 16.0))
    assert ends(row.samples) == pytest.approx((1.0, 1.0, 1984 / 1024))


@given(noise_scales, batch_sizes, batch_sizes)
def test_steps_times_batch_are_samples(noise_scale, base, batch):
    row = batch_table(noise(noise_scale, noise_scale / 2, noise_scale * 2), base, [batch])[0]
    assert row.steps.value * row.scale == pytest.approx(row.samples.value)
    assert row.lr_multiplier.value * row.steps.value == pytest.approx(1.0)


@given(noise_scales, batch_sizes, batch_sizes)
def test_every_range_holds_its_value_also_below_the_base_batch(noise_scale, base, batch):
    row = batch_table(noise(noise_scale, noise_scale / 2, noise_scale * 2), base, [batch])[0]
    for numbers in (row.lr_multiplier, row.steps, row.samples):
        slack = 1e-12 * numbers.value
        assert numbers.low - slack <= numbers.value <= numbers.high + slack


@given(noise_scales, st.integers(1, 1000))
def test_larger_batches_take_fewer_steps_and_more_samples(noise_scale, base):
    rows = batch_table(noise(noise_scale, noise_scale / 2, noise_scale * 2), base)
    for one, two in pairwise(rows):
        assert two.steps.value < one.steps.value
        assert two.samples.value > one.samples.value
        assert two.lr_multiplier.value > one.lr_multiplier.value


@given(noise_scales, batch_sizes, batch_sizes)
def test_the_table_is_the_trade_off_divided_by_its_value_at_the_base_batch(
    noise_scale, base, batch
):
    row = batch_table(noise(noise_scale, noise_scale, noise_scale), base, [batch])[0]

    def beside_base(formula):
        at = formula(noise_scale=noise_scale, batch_size=batch)
        return at / formula(noise_scale=noise_scale, batch_size=base)

    assert row.steps.value == pytest.approx(beside_base(steps_over_fewest))
    assert row.samples.value == pytest.approx(beside_base(samples_over_fewest))


@given(noise_scales, batch_sizes)
def test_excess_steps_times_excess_samples_is_one(noise_scale, batch):
    steps = noise_scale / batch
    samples = batch / noise_scale
    assert steps_over_fewest(noise_scale=noise_scale, batch_size=batch) == 1.0 + steps
    assert samples_over_fewest(noise_scale=noise_scale, batch_size=batch) == 1.0 + samples
    assert steps * samples == pytest.approx(1.0)


def test_at_the_noise_scale_steps_and_samples_are_both_doubled():
    assert steps_over_fewest(noise_scale=1000.0, batch_size=1000.0) == 2.0
    assert samples_over_fewest(noise_scale=1000.0, batch_size=1000.0) == 2.0
    assert math.isinf(samples_over_fewest(noise_scale=0.0, batch_size=8))


@given(noise_scales, st.integers(0, 1_000_000))
def test_the_half_efficiency_batch_has_half_the_efficiency(noise_scale, base):
    batch = half_efficiency_batch_size(noise_scale=noise_scale, base_batch_size=base)
    half = efficiency(noise_scale=noise_scale, base_batch_size=base, batch_size=batch)
    assert half == pytest.approx(0.5)


def doublings_by_trying(noise_scale, base):
    """Return the batch size reached by doublings that each multiply the gain by at least 4/3."""

    def gain(batch):
        return gain_from_noise_scale(
            noise_scale=noise_scale, base_batch_size=base, scale=batch / base
        )

    batch = base
    while gain(2 * batch) / gain(batch) >= 4.0 / 3.0:
        batch *= 2
    return batch


@given(st.integers(1, 10_000_000), st.integers(1, 1000))
def test_doubling_stops_paying_where_trying_each_doubling_says(noise_scale, base):
    noise_scale += 0.5  # away from the ties, where rounding decides
    paying = paying_batch_size(noise_scale=noise_scale, base_batch_size=base)
    assert paying == doublings_by_trying(noise_scale, base)


@pytest.mark.parametrize(
    ("noise_scale", "batch"),
    [(0.0, 64), (63.9, 64), (64.0, 128), (127.9, 128), (128.0, 256), (1240.0, 2048)],
)
def test_the_last_doubling_that_pays_starts_at_or_below_the_noise_scale(noise_scale, batch):
    assert paying_batch_size(noise_scale=noise_scale, base_batch_size=64) == batch


def test_the_range_of_the_paying_batch_follows_the_interval():
    assert ends(paying_range(noise(high=2100.0), 64)) == (1024.0, 1024.0, 4096.0)
    open_ended = paying_range(noise(value=math.inf, high=math.inf), 64)
    assert ends(open_ended) == (math.inf, 1024.0, math.inf)


def test_the_default_table_ends_one_doubling_beyond_the_last_that_pays():
    assert [row.batch_size for row in batch_table(noise(), 64)] == [64, 128, 256, 512, 1024, 2048]
    assert [row.batch_size for row in batch_table(noise(value=3.0), 64)] == [64, 128]
    lost = noise(value=math.inf, low=100.0, high=math.inf)
    assert [row.batch_size for row in batch_table(lost, 64)] == [64, 128, 256]


@pytest.mark.parametrize(("base", "batches"), [(0, None), (64, [128, 0])])
def test_a_batch_below_one_sample_is_refused(base, batches):
    with pytest.raises(ValueError, match="at least 1"):
        batch_table(noise(), base, batches)
