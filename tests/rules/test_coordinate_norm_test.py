"""The coordinate-wise norm test in its strict form and in its relaxation."""

from __future__ import annotations

import math
from typing import Any

import pytest
from batch_rules import (
    TESTED,
    asked,
    cases,
    check_case,
    moments_of,
    see,
    size_asked,
    value_of,
)
from hypothesis import given
from hypothesis import strategies as st

from largebatch.rules import CoordinateNormTest, NormTest

POSITIVE = st.floats(1e-6, 1e6)
STRICT: Any = {"statistic": "coordinate_noise_scale"}


@cases(TESTED)
def test_a_case_gets_its_next_size(case: dict[str, Any]) -> None:
    check_case(CoordinateNormTest(eta=case["params"]["eta"], **STRICT), case, "coord")


@given(variance=POSITIVE, sqnorm=POSITIVE, eta=st.floats(0.1, 2.0))
def test_the_default_coordinate_norm_test_is_the_norm_test_of_preconditioned_moments(
    variance: float, sqnorm: float, eta: float
) -> None:
    seen = see(moments_of(1.0, 1.0), preconditioned_moments=moments_of(variance, sqnorm))
    rule = NormTest(eta=eta, statistic="preconditioned_moments")
    assert asked(CoordinateNormTest(eta=eta), seen) == asked(rule, seen)


@given(scale=st.floats(0, 1e6), eta=st.floats(0.1, 2.0))
def test_the_strict_size_passes_its_own_test(scale: float, eta: float) -> None:
    seen = see(coordinate_noise_scale=scale)
    size = size_asked(CoordinateNormTest(eta=eta, **STRICT), seen)
    assert scale / size <= eta**2 * (1 + 1e-9)
    again = asked(
        CoordinateNormTest(eta=eta, **STRICT), see(coordinate_noise_scale=scale, batch_size=size)
    )
    theta = value_of(again.reason, "theta_max")
    assert theta is not None
    assert theta <= eta * 1.001


def test_a_coordinate_of_noise_alone_asks_for_the_data_set() -> None:
    seen = see(coordinate_noise_scale=math.inf, dataset_size=5000)
    decision = asked(CoordinateNormTest(**STRICT), seen)
    assert decision.reason == (
        "theta_max inf > eta 0.5, test failed, squared norm is 0; "
        "batch size 5000, the whole data set"
    )


@pytest.mark.parametrize("scale", [None, math.nan])
def test_an_unknown_coordinate_noise_scale_keeps_the_batch(scale: float | None) -> None:
    seen = see(coordinate_noise_scale=scale)
    decision = asked(CoordinateNormTest(**STRICT), seen)
    assert decision.next_batch_size == 64
    assert decision.measure_next == {"coordinate_noise_scale"}


def test_an_impossible_test_is_refused() -> None:
    with pytest.raises(ValueError, match="CoordinateNormTest"):
        CoordinateNormTest(eta=0.0)
    with pytest.raises(ValueError, match="coordinate_noise_scale"):
        CoordinateNormTest(statistic="moments")  # type: ignore[arg-type]
