"""Test growing batches and learning rates: exponents, stages and the any-time batch size."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from theory_cases import CASES

from largebatch import theory as th

ONE = th.Problem(smoothness=1.0, variance=3.0, gap=2.0)
factors = st.floats(0.3, 4.0)


def slope(*, batch: float, lr: float, steps: float, fewest: int, most: int) -> float:
    """-d ln(bound) / d ln(samples) over numbers of stages, all rates far below 2 / L."""
    first = th.Stage(steps=100.0, batch_size=16.0, lr=1e-3 / max(lr, 1.0) ** most)
    moved = first.lr**2 * first.steps / first.batch_size
    problem = th.Problem(smoothness=1.0, gap=1.0, variance=2.0 / moved)  # both terms alike at first
    samples, bounds = [], []
    for count in range(fewest, most):
        stages = th.geometric_stages(
            first, count, batch_growth=batch, lr_growth=lr, steps_growth=steps
        )
        samples.append(math.log(math.fsum(stage.samples for stage in stages)))
        bounds.append(math.log(th.bound_of_stages(problem, stages).total))
    return -float(np.polyfit(samples, bounds, 1)[0])


ON = [(2.0, math.sqrt(2), 1.0), (2.0, 1.0, 2.0), (1.0, math.sqrt(0.5), 2.0), (2.0, 2**0.25, 2**0.5)]
OFF = [(2.0, 1.3, 1.0), (2.0, 1.1, 1.0), (2.0, 1.7, 1.0), (2.0, 2.0, 1.0), (2.0, 1.0, 1.0)]


@pytest.mark.parametrize(("batch", "lr", "steps"), ON + OFF)
def test_the_bound_falls_with_the_exponent_of_the_theory(
    batch: float, lr: float, steps: float
) -> None:
    exponent = th.bound_exponent(batch_growth=batch, lr_growth=lr, steps_growth=steps)
    measured = slope(batch=batch, lr=lr, steps=steps, fewest=100, most=200)
    assert measured == pytest.approx(exponent, abs=0.03)
    if (batch, lr, steps) in ON:
        assert exponent == pytest.approx(0.5)
    else:
        assert exponent < 0.4


@given(batch=factors, lr=factors, steps=factors)
def test_no_growth_is_better_than_the_relation(batch: float, lr: float, steps: float) -> None:
    if batch * steps <= 1.01:
        return
    exponent = th.bound_exponent(batch_growth=batch, lr_growth=lr, steps_growth=steps)
    assert exponent <= 0.5 + 1e-9
    travelled, noise = lr * steps, lr**2 * steps / batch
    if travelled > 1:  # the two sides as they are usually written
        side = math.log(travelled if noise <= 1 else batch / lr) / math.log(batch * steps)
        assert exponent == pytest.approx(side, abs=1e-9)


@given(lr=factors, steps=factors)
def test_the_three_forms_of_the_relation_agree(lr: float, steps: float) -> None:
    batch = th.batch_growth_on_relation(lr_growth=lr, steps_growth=steps)
    assert th.lr_growth_on_relation(batch_growth=batch, steps_growth=steps) == pytest.approx(lr)
    assert th.steps_growth_on_relation(batch_growth=batch, lr_growth=lr) == pytest.approx(steps)
    if lr * steps > 1.01:
        exponent = th.bound_exponent(batch_growth=batch, lr_growth=lr, steps_growth=steps)
        assert exponent == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("batch", "steps", "exponent"),
    [(2.0, 1.0, 0.0), (2.0, 2.0, 0.5), (1.0, 2.0, 1.0), (2, 4, 2 / 3)],
)
def test_steps_grow_with_their_exponent(batch: float, steps: float, exponent: float) -> None:
    assert th.steps_exponent(batch_growth=batch, steps_growth=steps) == pytest.approx(exponent)


@pytest.mark.parametrize("name", ["batch_growth", "lr_growth", "steps_growth"])
@pytest.mark.parametrize("bad", [0.0, -2.0, math.inf, math.nan])
def test_a_factor_that_is_not_above_zero_is_refused(name: str, bad: float) -> None:
    growth = {"batch_growth": 2.0, "lr_growth": 1.4, "steps_growth": 1.0, name: bad}
    with pytest.raises(ValueError, match=f"{name} must be a finite number above 0"):
        th.bound_exponent(**growth)
    with pytest.raises(ValueError, match=f"{name} must be a finite number above 0"):
        th.geometric_stages(th.Stage(steps=1, batch_size=1, lr=1), 2, **growth)


def test_stages_that_shrink_have_no_exponent() -> None:
    with pytest.raises(ValueError, match="must have more samples than the stage before"):
        th.bound_exponent(batch_growth=2.0, lr_growth=1.0, steps_growth=0.5)


def test_the_batch_of_a_contraction_keeps_the_share_of_the_noise() -> None:
    """gap_{t+1} = kept gap_t + noise / batch falls by `kept` a step where the batch grows so."""
    lr, curvature, steps, gap, batch = 0.5, 0.1, 20, 1.0, 8.0
    kept = 1 - curvature * lr * (2 - lr)
    factor = th.contraction_batch_growth(curvature=curvature, smoothness=1.0, lr=lr, steps=steps)
    assert factor == pytest.approx(kept**-steps)
    gaps = []
    for _ in range(60):
        for _ in range(steps):
            gap = kept * gap + lr**2 * ONE.variance / (2 * batch)
        gaps.append(gap)
        batch *= factor
    # each stage's noise is a constant share of the gap: it falls as the factor, but for a count
    assert math.log(gaps[29] / gaps[59]) / 30 == pytest.approx(math.log(factor), rel=0.05)


@pytest.mark.parametrize(("curvature", "lr"), [(2.0, 0.5), (0.1, 2.0), (1.0, 1.0)])
def test_the_growth_relation_refuses_a_rate_that_does_not_contract(
    curvature: float, lr: float
) -> None:
    with pytest.raises(ValueError, match="a factor in"):
        th.contraction_batch_growth(curvature=curvature, smoothness=1.0, lr=lr, steps=1)


# Stages


@pytest.mark.parametrize(
    "name", ["stage_epochs_power_0", "stage_epochs_power_1.5", "stage_epochs_power_2"]
)
def test_the_stages_are_those_of_the_case(name: str) -> None:
    case = CASES["schedules"][name]
    config, rows = case["config"], case["rows"]
    growth = config["delta"] ** config["power"]
    lengths = th.stage_lengths(config["epochs"], config["stages"], growth=growth)
    assert lengths == pytest.approx([row["epochs_exact"] for row in rows], rel=1e-12)
    ends = th.stage_ends(config["epochs"], config["stages"], growth=growth)
    assert list(ends) == [row["epoch_end"] for row in rows]
    first = th.Stage(steps=1, batch_size=config["b0"], lr=config["lr0"])
    stages = th.geometric_stages(
        first, config["stages"], batch_growth=config["delta"], lr_growth=config["gamma"]
    )
    assert [s.batch_size for s in stages] == [row["batch"] for row in rows]
    assert [s.lr for s in stages] == pytest.approx([row["lr"] for row in rows], rel=1e-12)


@given(total=st.floats(1e-3, 1e13), count=st.integers(1, 60), growth=st.floats(0.01, 100))
def test_lengths_grow_by_the_factor_and_fill_the_budget(
    total: float, count: int, growth: float
) -> None:
    lengths = th.stage_lengths(total, count, growth=growth)
    assert math.fsum(lengths) == pytest.approx(total, rel=1e-9)
    for before, after in itertools.pairwise(lengths):
        assert after == pytest.approx(before * growth, rel=1e-6)


@given(total=st.integers(1, 10**13), count=st.integers(1, 40), growth=st.floats(0.2, 5))
def test_ends_rise_to_the_whole_budget_or_say_that_a_stage_is_never_reached(
    total: int, count: int, growth: float
) -> None:
    exact = [0.0, *itertools.accumulate(th.stage_lengths(total, count, growth=growth))][:-1]
    if len({*map(round, exact), total}) <= count:
        with pytest.raises(ValueError, match="would have the length 0"):
            th.stage_ends(total, count, growth=growth)
        return
    ends = th.stage_ends(total, count, growth=growth)
    assert ends[-1] == total
    assert all(a < b for a, b in itertools.pairwise((0, *ends)))


def test_stages_past_the_range_of_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="too large or too small for a float"):
        th.geometric_stages(th.Stage(steps=1, batch_size=16, lr=0.1), 2000, batch_growth=2.0)
    with pytest.raises(ValueError, match="too large or too small for a float"):
        th.geometric_stages(
            th.Stage(steps=1, batch_size=16, lr=0.1), 5000, batch_growth=1.0, lr_growth=0.5
        )


def test_no_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        th.stage_lengths(10.0, 0, growth=2.0)


# The law for every length


def test_the_law_is_that_of_the_case() -> None:
    case = CASES["schedules"]["anytime_law_const_lr"]
    config, rows = case["config"], {row["step"]: row for row in case["rows"]}
    samples, travelled = 0, 0.0
    for step in range(config["T"]):
        travelled += config["lr0"]
        exact = th.any_time_batch_size(lr=config["lr0"], lr_sum=travelled, constant=config["c"])
        batch = max(config["b_min"], math.ceil(exact - 1e-9))
        if step in rows:
            assert batch == rows[step]["batch"]
            assert samples == rows[step]["samples_before"]
        samples += batch


def rates_of(shape: str, steps: int) -> Any:
    t = np.arange(steps)
    return {"constant": 0.1 + 0.0 * t, "root": 0.1 / np.sqrt(t + 1.0), "rising": 1e-4 * (t + 1)}[
        shape
    ]


@pytest.mark.parametrize("shape", ["constant", "root", "rising"])
@pytest.mark.parametrize("multiplier", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("steps", [1, 10, 3000])
def test_the_law_keeps_the_bound_that_it_promises(
    shape: str, multiplier: float, steps: int
) -> None:
    lrs = rates_of(shape, steps)
    sums = np.cumsum(lrs)
    constant = multiplier * th.any_time_constant(ONE)
    batches = [
        th.any_time_batch_size(lr=lr, lr_sum=s, constant=constant)
        for lr, s in zip(lrs, sums, strict=True)
    ]
    promised = th.any_time_bound(
        ONE, lr_sum=sums[-1], first_lr=lrs[0], max_lr=lrs.max(), multiplier=multiplier
    )
    kept = th.gradient_bound(ONE, lrs=lrs, batch_sizes=batches)
    assert kept.total <= promised * (1 + 1e-12)
    assert kept.total >= 0.75 * promised  # and the promise is no larger than it must be
    # each step adds bias and variance in the same proportion
    step = ONE.smoothness * ONE.variance * lrs**2 / np.asarray(batches) / 2
    assert step == pytest.approx(ONE.gap * lrs / sums / multiplier, rel=1e-9)


def test_the_law_refuses_a_sum_without_the_step_itself() -> None:
    with pytest.raises(ValueError, match="includes the step's own learning rate"):
        th.any_time_batch_size(lr=0.1, lr_sum=0.05, constant=1.0)
    with pytest.raises(ValueError, match="first_lr must not be above"):
        th.any_time_bound(ONE, lr_sum=1.0, first_lr=0.2, max_lr=0.1)
