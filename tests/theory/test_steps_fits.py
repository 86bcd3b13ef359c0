"""Test fits of measured steps: both curves, bias, coverage of intervals and errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize
from theory_cases import CASES

from largebatch.analysis.noise import NotEnough
from largebatch.theory import StepsFit, fit_steps
from largebatch.theory.lines import line_through

SIZES = np.array([16.0, 32, 64, 128, 256, 512, 1024])
CRITICAL, FEWEST = 128.0, 500.0
LOW_ENOUGH = {"Iiduka": SIZES[SIZES > 70], "McCandlish": SIZES}


def truth(family: str, b: Any) -> Any:
    if family == "Iiduka":
        return FEWEST / (1 - CRITICAL / (2 * b))
    return FEWEST * (1 + CRITICAL / b)


def fit(family: str, b: Any, t: Any, **more: Any) -> StepsFit | NotEnough:
    fits = fit_steps(b, t, **more)
    return fits.iiduka if family == "Iiduka" else fits.mccandlish


both = pytest.mark.parametrize("family", ["Iiduka", "McCandlish"])


@both
def test_without_scatter_the_curve_is_found(family: str) -> None:
    b = LOW_ENOUGH[family]
    found = fit(family, b, truth(family, b))
    assert isinstance(found, StepsFit)
    for end in (found.critical_batch_size, found.low, found.high):
        assert end == pytest.approx(CRITICAL, rel=1e-6)
    assert found.fewest_steps == pytest.approx(FEWEST, rel=1e-9)
    assert [found.steps(size) for size in b] == pytest.approx(list(truth(family, b)), rel=1e-9)
    samples = FEWEST * CRITICAL * (2 if family == "Iiduka" else 1)
    assert found.fewest_samples == pytest.approx(samples, rel=1e-9)


def test_the_fit_of_the_case() -> None:
    case = CASES["sfo"]
    found = fit("Iiduka", case["b"], case["K"])
    assert isinstance(found, StepsFit)
    assert found.critical_batch_size == pytest.approx(case["fit"]["b_star"], rel=1e-9)
    assert 1 / found.fewest_steps == pytest.approx(case["fit"]["intercept"], rel=1e-9)
    line = line_through(1 / np.asarray(case["b"]), 1 / np.asarray(case["K"]))
    assert line is not None
    assert line.slope == pytest.approx(case["fit"]["slope"], rel=1e-9)


def test_the_line_solves_its_own_equations() -> None:
    """The quasi-likelihood's equations by a root finder, and the covariance by its definition."""
    rng = np.random.default_rng(0)
    x = 1 / SIZES
    y = (500 + 64_000 * x) * (1 + 0.1 * rng.normal(size=len(x)))

    def equations(p: Any) -> Any:
        mean = p[0] * 500 + p[1] * 64_000 * x
        return [((y - mean) / mean**2).sum() * 500, ((y - mean) * x / mean**2).sum() * 64_000]

    solved = optimize.root(equations, [1.0, 1.0], tol=1e-13)
    assert solved.success
    line = line_through(x, y)
    assert line is not None
    assert line.intercept == pytest.approx(solved.x[0] * 500, rel=1e-7)
    assert line.slope == pytest.approx(solved.x[1] * 64_000, rel=1e-7)
    mean = line.intercept + line.slope * x
    information = sum(np.outer([1, xi], [1, xi]) / mi**2 for xi, mi in zip(x, mean, strict=True))
    variance = sum((y / mean - 1) ** 2) / (len(x) - 2)
    assert line.covariance == pytest.approx(variance * np.linalg.inv(information), rel=1e-6)
    assert line.spread == pytest.approx(math.sqrt(variance), rel=1e-9)


@both
@pytest.mark.parametrize("spread", [0.03, 0.1])
def test_the_critical_batch_is_unbiased_and_its_interval_covers(family: str, spread: float) -> None:
    rng = np.random.default_rng(1)
    b = np.repeat(LOW_ENOUGH[family], 2)
    found, covered = [], []
    for _ in range(400):
        t = truth(family, b) * (1 + spread * rng.normal(size=len(b)))
        one = fit(family, b, t)
        assert isinstance(one, StepsFit)
        found.append(one.critical_batch_size)
        covered.append(one.low <= CRITICAL <= one.high)
    error = np.std(found) / math.sqrt(len(found))
    # a ratio's mean is off by a share of its variance: allowed beside the error of 400 fits
    assert np.mean(found) == pytest.approx(CRITICAL, abs=3 * error + np.var(found) / CRITICAL)
    assert np.mean(covered) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)


@both
def test_weights_by_the_measured_steps_would_be_biased(family: str) -> None:
    """Naive weights from measured values pull the line towards low values."""
    rng = np.random.default_rng(2)
    b = np.repeat(LOW_ENOUGH[family], 2)
    x, ours, naive = 1 / b, [], []
    for _ in range(400):
        t = truth(family, b) * (1 + 0.2 * rng.normal(size=len(b)))
        y = 1 / t if family == "Iiduka" else t
        line = line_through(x, y)
        if line is None or (y <= 0).any():
            continue
        columns = np.stack([1 / y, x / y], axis=1)
        naive.append(np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0] @ [1, x.mean()])
        ours.append(line.intercept + line.slope * x.mean())
    exact = np.mean(truth(family, b))
    if family == "McCandlish":  # the steps themselves, whose mean is the curve
        assert np.mean(ours) == pytest.approx(exact, rel=0.01)
        assert np.mean(naive) < 0.95 * exact
    else:
        assert np.mean(naive) < np.mean(ours)


@both
def test_two_sizes_are_not_enough(family: str) -> None:
    found = fit(family, [100, 100, 200, 200], [30, 31, 20, 21])
    assert str(found) == "not enough signal yet: 2 different batch sizes; needed: at least 3"


def test_batches_far_below_the_critical_one_need_larger_ones() -> None:
    b = np.array([1.0, 2, 4, 8] * 2)
    t = truth("McCandlish", b) * (1 + 0.1 * np.random.default_rng(0).normal(size=8))
    found = fit("McCandlish", b, t)
    assert isinstance(found, NotEnough)
    assert "batch sizes above the measured ones" in found.needed


@both
def test_batches_far_above_the_critical_one_need_smaller_ones(family: str) -> None:
    b = 1e5 * np.array([1.0, 2, 4, 8] * 2)
    t = truth(family, b) * (1 + 0.1 * np.random.default_rng(0).normal(size=8))
    found = fit(family, b, t)
    assert isinstance(found, NotEnough)
    assert "batch sizes below the measured ones" in found.needed


@both
def test_steps_that_rise_with_the_batch_give_no_number(family: str) -> None:
    found = fit(family, [10, 20, 40], [100, 200, 300])
    assert isinstance(found, NotEnough)
    assert "does not fall" in found.reason


@both
def test_scatter_alone_gives_a_number_as_rarely_as_it_may(family: str) -> None:
    rng = np.random.default_rng(3)
    b = np.repeat(SIZES, 2)
    found = [fit(family, b, np.exp(0.5 * rng.normal(size=len(b)))) for _ in range(300)]
    assert sum(isinstance(one, StepsFit) for one in found) / 300 < 0.05 + 0.03


def test_falling_samples_are_iiduka_s_and_rising_ones_mccandlish_s() -> None:
    """The spread distinguishes the two curves if the data can."""
    b = SIZES[SIZES > 70]
    fits = fit_steps(b, truth("Iiduka", b))
    assert isinstance(fits.iiduka, StepsFit)
    assert isinstance(fits.mccandlish, StepsFit)
    assert fits.iiduka.spread < 1e-9 < fits.mccandlish.spread
    fits = fit_steps(SIZES, truth("McCandlish", SIZES))
    assert isinstance(fits.mccandlish, StepsFit)
    assert isinstance(fits.iiduka, NotEnough) or fits.iiduka.spread > 0.01
    assert str(fits).splitlines()[1].startswith("McCandlish: critical batch 128 [128, 128] samples")


def test_below_half_of_iiduka_s_critical_batch_the_target_is_never_reached() -> None:
    found = fit("Iiduka", [100, 200, 400], truth("Iiduka", np.array([100.0, 200, 400])))
    assert isinstance(found, StepsFit)
    assert math.isinf(found.steps(60))
    assert found.steps(found.critical_batch_size) == pytest.approx(2 * FEWEST)


@pytest.mark.parametrize(
    ("b", "t", "said"),
    [
        ([1, 2, 3], [1, 2], "one number of steps for each"),
        ([1, 2, 3], [1, 2, math.inf], "did not reach the target"),
        ([1, 2, 0], [1, 2, 3], "batch_sizes=.*must be finite and above 0"),
        ([[1, 2, 3]], [[1, 2, 3]], "shapes"),
    ],
)
def test_bad_series_are_refused(b: Any, t: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_steps(b, t)


@pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
def test_a_level_is_a_probability(level: float) -> None:
    with pytest.raises(ValueError, match="must be a probability"):
        fit_steps([1, 2, 3], [3, 2, 1], level=level)
