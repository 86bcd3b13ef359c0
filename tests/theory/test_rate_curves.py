"""Test the best learning rate as a function of the noise scale, and Adam's scaling rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from theory_cases import CASES

from largebatch.analysis.efficiency import samples_over_fewest, steps_over_fewest
from largebatch.core.formulas import gain_from_noise_scale
from largebatch.theory import AdamSettings, adam_rate, adam_sqrt_rule, sgd_rate

CURVES = CASES["schedules"]["gns_lr_curves"]
ADAM = CASES["schedules"]["adam_sqrt_rule"]
positive = st.floats(1e-3, 1e6)


@pytest.mark.parametrize("row", CURVES["rows"], ids=lambda row: str(row["batch"]))
def test_the_curves_are_those_of_the_case(row: Any) -> None:
    n = CURVES["config"]["B_noise"]
    given_ = {"batch_size": row["batch"], "noise_scale": n, "max_lr": CURVES["config"]["lr_max"]}
    assert sgd_rate(**given_) == pytest.approx(row["sgd"], rel=1e-12)
    assert adam_rate(**given_) == pytest.approx(row["adam"], rel=1e-12)
    steps = steps_over_fewest(noise_scale=n, batch_size=row["batch"])
    assert steps == pytest.approx(row["steps_over_Smin"], rel=1e-12)
    samples = samples_over_fewest(noise_scale=n, batch_size=row["batch"])
    assert samples == pytest.approx(row["examples_over_Emin"], rel=1e-12)


@given(base=positive, noise=positive, scale=positive)
def test_the_ratio_of_sgd_s_rates_is_adascale_s_gain(
    base: float, noise: float, scale: float
) -> None:
    ratio = sgd_rate(batch_size=scale * base, noise_scale=noise, max_lr=1.0) / sgd_rate(
        batch_size=base, noise_scale=noise, max_lr=1.0
    )
    gain = gain_from_noise_scale(noise_scale=noise, base_batch_size=base, scale=scale)
    assert ratio == pytest.approx(gain, rel=1e-9)


@given(noise=positive, factor=st.floats(1e-3, 1e3))
def test_adam_s_rate_is_largest_at_the_noise_scale_and_alike_on_both_sides(
    noise: float, factor: float
) -> None:
    at = adam_rate(batch_size=noise, noise_scale=noise, max_lr=0.3)
    below = adam_rate(batch_size=noise / factor, noise_scale=noise, max_lr=0.3)
    above = adam_rate(batch_size=noise * factor, noise_scale=noise, max_lr=0.3)
    assert at == pytest.approx(0.3)
    assert below == pytest.approx(above, rel=1e-9)
    assert above <= at * (1 + 1e-12)


def test_far_below_the_noise_scale_sgd_is_linear_and_adam_takes_the_root() -> None:
    few, more = ({"batch_size": b, "noise_scale": 1e12, "max_lr": 1.0} for b in (10, 40))
    assert sgd_rate(**more) / sgd_rate(**few) == pytest.approx(4.0)
    assert adam_rate(**more) / adam_rate(**few) == pytest.approx(2.0)


def test_sgd_without_noise_and_with_nothing_else() -> None:
    assert sgd_rate(batch_size=1, noise_scale=0.0, max_lr=0.3) == 0.3
    assert sgd_rate(batch_size=1, noise_scale=math.inf, max_lr=0.3) == 0.0
    with pytest.raises(ValueError, match="noise_scale"):
        sgd_rate(batch_size=1, noise_scale=math.nan, max_lr=0.3)
    with pytest.raises(ValueError, match="noise_scale"):
        adam_rate(batch_size=1, noise_scale=0.0, max_lr=0.3)


@pytest.mark.parametrize("row", ADAM["rows"], ids=lambda row: str(row["batch"]))
def test_adam_s_rule_is_that_of_the_case(row: Any) -> None:
    config = ADAM["config"]
    base = AdamSettings(
        lr=config["lr0"], betas=(config["beta1"], config["beta2"]), eps=config["eps"]
    )
    scaled = adam_sqrt_rule(base, scale=row["batch"] / config["b0"])
    assert scaled.lr == pytest.approx(row["lr"], rel=1e-12)
    assert scaled.betas == pytest.approx((row["beta1"], row["beta2"]), rel=1e-12)
    assert scaled.eps == pytest.approx(row["eps"], rel=1e-12)


@given(a=st.floats(0.1, 3.0), b=st.floats(0.1, 3.0))
def test_adam_s_rule_composes(a: float, b: float) -> None:
    base = AdamSettings(lr=1e-3)
    twice = adam_sqrt_rule(adam_sqrt_rule(base, scale=a), scale=b)
    once = adam_sqrt_rule(base, scale=a * b)
    assert twice.lr == pytest.approx(once.lr)
    assert twice.betas == pytest.approx(once.betas, abs=1e-12)
    assert twice.eps == pytest.approx(once.eps)


def test_adam_s_rule_ends_where_a_beta_would_be_negative() -> None:
    with pytest.raises(ValueError, match="a scale of at most 10"):
        adam_sqrt_rule(AdamSettings(lr=1e-3), scale=16.0)


@pytest.mark.parametrize(
    "bad", [{"lr": 0.0}, {"lr": 1.0, "betas": (1.0, 0.9)}, {"lr": 1, "eps": -1}]
)
def test_settings_out_of_range_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="AdamSettings"):
        AdamSettings(**bad)
