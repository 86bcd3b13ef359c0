"""Test formulas for known constants: tau-nice batches and the noise model."""

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

RIDGE = CASES["alfarra"]
STICH = CASES["stich"]
KNOWN = {"dataset_size": RIDGE["n"], "smoothness": RIDGE["L"], "max_smoothness": RIDGE["L_max"]}


def gradients(w: Any) -> Any:
    """Of each of the case's ridge losses, [n, d]."""
    x, y = np.asarray(RIDGE["X"]), np.asarray(RIDGE["y"])
    return x * (x @ w - y)[:, None] + RIDGE["lam"] * np.asarray(w)


@pytest.mark.parametrize("row", RIDGE["results"], ids=lambda row: f"eps {row['eps']}")
def test_the_batch_with_least_work_is_that_of_the_case(row: Any) -> None:
    goal = {"mean_sqnorm": row["h_bar"], "curvature": RIDGE["mu"], "target": row["eps"]}
    best = th.tau_nice_optimal_batch_size(**KNOWN, **goal)
    assert best == pytest.approx(row["tau_star_clipped"], rel=1e-9)
    smooth = th.tau_nice_smoothness(batch_size=best, **KNOWN)
    variance = th.tau_nice_variance(
        batch_size=best, dataset_size=RIDGE["n"], mean_sqnorm=row["h_bar"]
    )
    assert smooth == pytest.approx(row["calL"], rel=1e-9)
    assert variance == pytest.approx(row["sigma"], rel=1e-9)
    rate = th.tau_nice_rate(
        expected_smoothness=smooth, variance=variance, curvature=RIDGE["mu"], target=row["eps"]
    )
    assert rate == pytest.approx(row["gamma"], rel=1e-9)
    work = th.tau_nice_work(batch_size=best, **KNOWN, **goal)
    assert work == pytest.approx(row["cost"], rel=1e-9)
    every = np.linspace(1, RIDGE["n"], 7001)
    least = min(th.tau_nice_work(batch_size=b, **KNOWN, **goal) for b in every)
    assert work <= least * (1 + 1e-9)


@pytest.mark.parametrize("row", RIDGE["at_x0"], ids=lambda row: f"eps {row['eps']}")
def test_away_from_the_optimum_the_best_batch_is_that_of_the_case(row: Any) -> None:
    goal = {"mean_sqnorm": row["h_bar"], "curvature": RIDGE["mu"], "target": row["eps"]}
    best = th.tau_nice_optimal_batch_size(**KNOWN, **goal)
    assert best == pytest.approx(row["tau_star"], rel=1e-9)
    used = math.floor(best)
    smooth = th.tau_nice_smoothness(batch_size=used, **KNOWN)
    variance = th.tau_nice_variance(
        batch_size=used, dataset_size=RIDGE["n"], mean_sqnorm=row["h_bar"]
    )
    assert (used, smooth) == (row["tau_used"], pytest.approx(row["calL"], rel=1e-9))
    assert variance == pytest.approx(row["sigma"], rel=1e-9)
    rate = th.tau_nice_rate(
        expected_smoothness=smooth, variance=variance, curvature=RIDGE["mu"], target=row["eps"]
    )
    assert rate == pytest.approx(row["gamma_capped"], rel=1e-9)  # the case's cap is far away


@pytest.mark.parametrize("batch", range(1, 9))
def test_variance_and_smoothness_hold_over_all_batches(batch: int) -> None:
    optimum, other = np.asarray(RIDGE["x_star"]), np.array([0.3, -0.2, 1.0])
    at, away = gradients(optimum), gradients(other)
    chosen = [list(c) for c in itertools.combinations(range(RIDGE["n"]), batch)]
    variance = np.mean([(at[c].mean(axis=0) ** 2).sum() for c in chosen])
    found = th.tau_nice_variance(
        batch_size=batch, dataset_size=RIDGE["n"], mean_sqnorm=float((at**2).sum(axis=1).mean())
    )
    assert found == pytest.approx(variance, abs=1e-12)
    moved = np.mean([((away - at)[c].mean(axis=0) ** 2).sum() for c in chosen])
    x, y = np.asarray(RIDGE["X"]), np.asarray(RIDGE["y"])
    below = [((x @ w - y) ** 2).mean() / 2 + RIDGE["lam"] * w @ w / 2 for w in (other, optimum)]
    smooth = th.tau_nice_smoothness(batch_size=batch, **KNOWN)
    assert moved <= 2 * smooth * (below[0] - below[1]) * (1 + 1e-9)


def test_without_noise_at_the_optimum_one_sample_is_best() -> None:
    goal = {"mean_sqnorm": 0.0, "curvature": 0.5, "target": 0.1}
    assert th.tau_nice_optimal_batch_size(**KNOWN, **goal) == 1.0


@pytest.mark.parametrize(("batch", "size"), [(0, 8), (9, 8), (1, 1), (math.nan, 8)])
def test_batches_outside_of_the_data_are_refused(batch: float, size: int) -> None:
    with pytest.raises(ValueError, match="between 1 and dataset_size"):
        th.tau_nice_variance(batch_size=batch, dataset_size=size, mean_sqnorm=1.0)


def test_a_mean_rougher_than_its_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="max_smoothness"):
        th.tau_nice_smoothness(batch_size=2, dataset_size=8, smoothness=2.0, max_smoothness=1.0)


# The model of the noise

MODEL = {"relative_variance": STICH["M"], "variance_floor": STICH["sigma2"]}
LOSS = {"smoothness": STICH["L"], "gap": STICH["F0"]}


@pytest.mark.parametrize("point", STICH["noise_points"])
def test_the_variance_is_that_of_the_case(point: Any) -> None:
    assert th.noise_model_variance(sqnorm=point[0], **MODEL) == pytest.approx(point[1])


@pytest.mark.parametrize("eps", STICH["crit_batch"])
def test_the_critical_batch_is_that_of_the_case_and_the_noise_scale(eps: str) -> None:
    critical = th.noise_model_critical_batch_size(target_sqnorm=float(eps), **MODEL)
    assert critical == pytest.approx(STICH["crit_batch"][eps])
    noise_scale = th.noise_model_variance(sqnorm=float(eps), **MODEL) / float(eps)
    assert critical == pytest.approx(noise_scale)


@pytest.mark.parametrize("key", STICH["iterations_no_constants"])
def test_the_steps_are_those_of_the_case(key: str) -> None:
    batch, eps, delay = (float(part.partition("=")[2]) for part in key.split(","))
    steps = th.noise_model_steps(batch_size=batch, target_sqnorm=eps, delay=delay, **MODEL, **LOSS)
    assert steps == pytest.approx(STICH["iterations_no_constants"][key], rel=1e-9)


@given(eps=st.floats(1e-4, 10), relative=st.floats(0, 1e3), floor=st.floats(1e-3, 1e3))
def test_at_the_critical_batch_steps_are_twice_the_fewest_and_4_thirds_of_those_at_twice_it(
    eps: float, relative: float, floor: float
) -> None:
    model = {"relative_variance": relative, "variance_floor": floor, "target_sqnorm": eps}
    critical = th.noise_model_critical_batch_size(**model)
    steps = th.noise_model_steps(batch_size=critical, **model, **LOSS)
    assert steps == pytest.approx(2 * STICH["L"] * STICH["F0"] / eps, rel=1e-9)
    for factor, ratio in ((2.0, 4 / 3), (4.0, 8 / 5), (1e12, 2.0)):
        fewer = th.noise_model_steps(batch_size=factor * critical, **model, **LOSS)
        assert steps / fewer == pytest.approx(ratio, rel=1e-9)


def test_the_rate_grows_with_the_batch_up_to_the_relative_variance() -> None:
    def rate(batch: float, delay: float = 0.0) -> float:
        return th.noise_model_max_rate(
            batch_size=batch, relative_variance=50.0, smoothness=2.0, delay=delay
        )

    assert rate(0.02) / rate(0.01) == pytest.approx(2.0, rel=1e-3)
    assert rate(50.0) == pytest.approx(rate(1e12) / 2)
    assert rate(50.0, delay=2.0) == pytest.approx(rate(50.0) / 2)


def test_one_step_at_that_rate_descends_without_a_floor_of_noise() -> None:
    """E f falls by lr / 2 |grad f|^2 where the variance is M |grad f|^2; without delay."""
    smooth, relative, batch, sqnorm = 2.0, 50.0, 10.0, 0.7
    lr = th.noise_model_max_rate(batch_size=batch, relative_variance=relative, smoothness=smooth)
    second = sqnorm * (1 + relative / batch)
    assert -lr * sqnorm + smooth * lr**2 / 2 * second == pytest.approx(-lr / 2 * sqnorm)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="target_sqnorm"):
        th.noise_model_critical_batch_size(target_sqnorm=0.0, **MODEL)
    with pytest.raises(ValueError, match="delay"):
        th.noise_model_steps(batch_size=1, target_sqnorm=0.1, delay=-1, **MODEL, **LOSS)
    with pytest.raises(ValueError, match="sqnorm"):
        th.noise_model_variance(sqnorm=-1.0, **MODEL)
