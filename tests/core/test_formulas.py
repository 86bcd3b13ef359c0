import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.formulas import efficiency, gain_from_noise_scale
from largebatch.rules import adascale

noise_scales = st.floats(0.0, 1e9)
batch_sizes = st.floats(1.0, 1e6)


@given(noise_scales, batch_sizes, st.floats(0.01, 1e4))
def test_the_gain_from_the_noise_scale_is_the_rules_gain(noise_scale, base, scale):
    seen = gain_from_noise_scale(noise_scale=noise_scale, base_batch_size=base, scale=scale)
    rule = adascale.gain(scale=scale, variance=noise_scale / base, sqnorm=1.0)
    assert seen == pytest.approx(rule, rel=1e-12)


@given(noise_scales, batch_sizes, st.floats(0.01, 1e4))
def test_the_gain_is_the_scale_times_the_efficiency(noise_scale, base, scale):
    seen = gain_from_noise_scale(noise_scale=noise_scale, base_batch_size=base, scale=scale)
    kept = efficiency(noise_scale=noise_scale, base_batch_size=base, batch_size=scale * base)
    assert seen == pytest.approx(scale * kept, rel=1e-12)


@given(noise_scales, batch_sizes, st.floats(1.0, 1e4))
def test_the_gain_lies_between_one_and_the_scale(noise_scale, base, scale):
    seen = gain_from_noise_scale(noise_scale=noise_scale, base_batch_size=base, scale=scale)
    assert 1.0 - 1e-12 <= seen <= scale * (1.0 + 1e-12)


def test_gain_and_efficiency_are_as_computed_by_hand():
    # S = 8: 8 (900 + 100) / (900 + 800) and (900 + 100) / (900 + 800)
    assert gain_from_noise_scale(noise_scale=900, base_batch_size=100, scale=8) == 8000 / 1700
    assert efficiency(noise_scale=900, base_batch_size=100, batch_size=800) == 1000 / 1700


def test_without_noise_a_larger_batch_gains_nothing_and_without_signal_everything():
    assert gain_from_noise_scale(noise_scale=0.0, base_batch_size=64, scale=8) == 1.0
    assert gain_from_noise_scale(noise_scale=math.inf, base_batch_size=64, scale=8) == 8.0
    assert efficiency(noise_scale=0.0, base_batch_size=64, batch_size=512) == 1 / 8
    assert efficiency(noise_scale=math.inf, base_batch_size=64, batch_size=512) == 1.0
