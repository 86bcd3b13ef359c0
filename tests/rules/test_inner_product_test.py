"""The inner-product test and the augmented one: published cases, and the identity behind them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from batch_rules import (
    CASES,
    TESTED,
    asked,
    cases,
    check_case,
    moments_of,
    moments_of_rows,
    see,
    seen_in,
    size_asked,
    value_of,
)
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.rules import AugmentedInnerProductTest, InnerProductTest, NormTest
from largebatch.rules.inner_product_test import inner_product_ratio, orthogonal_ratio

POSITIVE = st.floats(1e-3, 1e4)


def along_and_across(rows: Any) -> tuple[float, float]:
    """Var <g_i, g> and Var_orth of single samples' gradients, by the definition."""
    g = np.asarray(rows, dtype=np.float64)
    mean = g.mean(axis=0)
    dots, square = g @ mean, mean @ mean
    across = g - np.outer(dots / square, mean)
    return (
        float(((dots - square) ** 2).sum() / (len(g) - 1)),
        float((across**2).sum() / (len(g) - 1)),
    )


@cases(TESTED)
def test_a_case_gets_its_next_sizes_and_its_least_levels(case: dict[str, Any]) -> None:
    params, expected = case["params"], case["expected"]
    decision = check_case(InnerProductTest(theta=params["theta"]), case, "ip")
    rule = AugmentedInnerProductTest(theta=params["theta"], nu=params["nu"])
    augmented = check_case(rule, case, "aug")
    if case["stats"]["tr_sigma"] is None:
        assert decision.reason == augmented.reason == ""
        return
    for found, test, name, key in (
        (decision, "ip", "theta_max", "theta_max_cockpit"),
        (augmented, "ip", "theta_max", "theta_max_cockpit"),
        (augmented, "orth", "nu_max", "nu_max_cockpit"),
    ):
        if key in expected[test]:
            value = value_of(found.reason, name)
            assert value == pytest.approx(expected[test][key], rel=1e-3, abs=1e-7)
        else:
            assert value_of(found.reason, name) is None


@cases(TESTED)
def test_the_orthogonal_variance_of_a_case_is_what_the_identity_leaves(
    case: dict[str, Any],
) -> None:
    stats = case["stats"]
    if stats["orth_var"] is None:
        return
    rows = case["G"]
    along, across = along_and_across(rows)
    assert along == pytest.approx(stats["ip_var"], rel=1e-9, abs=1e-9)
    assert across == pytest.approx(stats["orth_var"], rel=1e-9, abs=1e-9)
    moments = moments_of_rows(rows)
    ratio = orthogonal_ratio(
        variance=moments.variance, inner_product_variance=along, sqnorm=moments.batch_sqnorm
    )
    assert ratio == pytest.approx(across / moments.batch_sqnorm, rel=1e-6, abs=1e-9)


@given(rows=st.lists(st.tuples(*[st.floats(-9, 9)] * 3), min_size=2, max_size=8))
def test_the_variance_is_that_along_and_that_across(rows: Any) -> None:
    moments = moments_of_rows(rows)
    if moments.batch_sqnorm < 1e-6:
        return
    along, across = along_and_across(rows)
    whole = along / moments.batch_sqnorm + across
    assert moments.variance == pytest.approx(whole, rel=1e-6, abs=1e-9)


def test_dots_summed_over_blocks_are_not_those_of_the_whole() -> None:
    (case,) = [case for case in CASES if case["name"] == "ip_blockwise_vs_global"]
    g, stats = np.asarray(case["G"]), case["stats"]
    whole, _ = along_and_across(g)
    blocks = sum(along_and_across(g[:, a:b])[0] for a, b in case["params"]["blocks"])
    assert whole == pytest.approx(stats["ip_var_global"], rel=1e-9)
    assert blocks == pytest.approx(stats["ip_var_sum_of_blocks"], rel=1e-9)
    assert blocks / whole == pytest.approx(stats["ratio"], rel=1e-9)


@given(variance=POSITIVE, part=st.floats(0.0, 1.0), sqnorm=POSITIVE, level=st.floats(0.1, 2.0))
def test_a_proposed_size_passes_and_the_norm_test_asks_for_no_less(
    variance: float, part: float, sqnorm: float, level: float
) -> None:
    moments = moments_of(variance, sqnorm)
    seen = see(moments, inner_product_variance=part * variance * sqnorm)
    size = size_asked(AugmentedInnerProductTest(theta=level, nu=level), seen)
    along = inner_product_ratio(inner_product_variance=part * variance * sqnorm, sqnorm=sqnorm)
    across = orthogonal_ratio(
        variance=variance, inner_product_variance=part * variance * sqnorm, sqnorm=sqnorm
    )
    assert along is not None
    assert across is not None
    assert max(along, across) / size <= level**2 * (1 + 1e-9)
    assert size_asked(InnerProductTest(theta=level), seen) <= size
    assert size <= size_asked(NormTest(eta=level), seen) + 1


def test_a_loss_in_other_units_gets_the_same_batch() -> None:
    for rule in (InnerProductTest(theta=0.1), AugmentedInnerProductTest(theta=0.1, nu=0.1)):
        sizes = {
            size_asked(rule, see(moments_of(6 * u, 2 * u), inner_product_variance=5 * u * u))
            for u in (1.0, 2.0**-40, 2.0**90)
        }
        assert len(sizes) == 1


def test_estimates_from_other_parts_may_leave_nothing_across() -> None:
    assert orthogonal_ratio(variance=1.0, inner_product_variance=9.0, sqnorm=1.0) == 0.0
    assert orthogonal_ratio(variance=1.0, inner_product_variance=-9.0, sqnorm=1.0) == 1.0
    assert inner_product_ratio(inner_product_variance=-9.0, sqnorm=1.0) == 0.0


@pytest.mark.parametrize("sqnorm", [0.0, math.nan])
@pytest.mark.parametrize("variance", [0.0, 3.0, math.inf])
def test_without_a_gradient_nothing_is_known_and_the_batch_stays(
    sqnorm: float, variance: float
) -> None:
    seen = see(moments_of(1.0, sqnorm), inner_product_variance=variance)
    assert size_asked(InnerProductTest(), seen) == 64
    assert asked(AugmentedInnerProductTest(), seen).reason == "theta_max unknown; nu_max unknown"


@pytest.mark.parametrize("rule", [InnerProductTest(), AugmentedInnerProductTest()])
@pytest.mark.parametrize("missing", ["moments", "inner_product_variance"])
def test_a_step_that_lacks_a_statistic_keeps_the_batch_and_asks_again(
    rule: Any, missing: str
) -> None:
    (case,) = [case for case in TESTED if case["name"] == "hand_2x2"]
    more: Any = {missing: None}
    proposed = Decision(next_batch_size=77, base_steps=1.0)
    _, decision = rule.update(None, replace(seen_in(case), **more), proposed)
    wanted = frozenset({"moments", "inner_product_variance"})
    assert decision == replace(proposed, measure_next=wanted)


@pytest.mark.parametrize("level", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_level_is_refused_with_an_example(level: float) -> None:
    with pytest.raises(ValueError, match=r"Example: InnerProductTest\(theta=0.9\)"):
        InnerProductTest(theta=level)
    with pytest.raises(ValueError, match="theta must be a finite number above 0"):
        AugmentedInnerProductTest(theta=level)
    with pytest.raises(ValueError, match="nu must be a finite number above 0"):
        AugmentedInnerProductTest(nu=level)
