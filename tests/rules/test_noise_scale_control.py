"""The batch as a multiple of the noise scale."""

from __future__ import annotations

import math

import pytest
from batch_rules import TESTED, asked, cases, moments_of, moments_of_rows, see, size_asked
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.formulas import efficiency
from largebatch.rules import NoiseScaleControl


@given(noise=st.floats(1.0, 1e6), sqnorm=st.floats(1e-3, 1e3), kappa=st.floats(0.01, 10.0))
def test_the_batch_is_kappa_times_the_noise_scale(
    noise: float, sqnorm: float, kappa: float
) -> None:
    moments = moments_of(noise * sqnorm, sqnorm + noise * sqnorm / 64)
    size = size_asked(NoiseScaleControl(kappa=kappa), see(moments))
    assert size == pytest.approx(max(kappa * noise, 2), abs=1.01, rel=1e-6)
    assert abs(efficiency(noise_scale=noise, base_batch_size=0, batch_size=noise) - 0.5) < 1e-9


@cases([case for case in TESTED if case["stats"]["tr_sigma"] is not None])
def test_a_case_has_its_noise_scale(case: dict) -> None:
    moments = moments_of_rows(case["G"])
    expected = case["stats"].get("b_simple_unbiased")
    if expected is not None and float(expected) < math.inf:
        seen = see(moments, batch_size=len(case["G"]))
        found = asked(NoiseScaleControl(kappa=1000.0), seen).next_batch_size
        assert found == max(math.ceil(1000 * float(expected) - 1e-6), 2)


def test_noise_alone_has_no_bound_and_neither_noise_nor_signal_keeps_the_batch() -> None:
    assert size_asked(NoiseScaleControl(), see(moments_of(64.0, 0.5), dataset_size=900)) == 900
    decision = asked(NoiseScaleControl(), see(moments_of(0.0, 0.0)))
    assert (decision.next_batch_size, decision.reason) == (64, "noise scale unknown")
    assert asked(NoiseScaleControl(), see()).measure_next == {"moments"}


@pytest.mark.parametrize("kappa", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_multiple_is_refused(kappa: float) -> None:
    with pytest.raises(
        ValueError, match=r"kappa is a number above 0, as in NoiseScaleControl\(kappa=1.0\)"
    ):
        NoiseScaleControl(kappa=kappa)
