"""Test the bound of SGD, and the samples and steps that follow at a constant batch size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from theory_cases import CASES

from largebatch import theory as th

ONE = th.Problem(smoothness=1.0, variance=3.0, gap=2.0)
SFO = CASES["sfo"]
TERMS = th.RateTerms(bias=SFO["C1"], noise=SFO["C2"])
TARGET = SFO["eps2"]

sizes = st.floats(0.5, 1e4)
problems = st.builds(
    th.Problem, smoothness=st.floats(0.1, 10), variance=st.floats(0, 100), gap=st.floats(0.01, 100)
)
runs = st.lists(st.tuples(st.floats(0.01, 1.9), sizes), min_size=1, max_size=20)


def in_a_loop(problem: th.Problem, lrs: list[float], batches: list[float]) -> float:
    """Return the bound, summed step by step as in its derivation."""
    travelled = noise = 0.0
    for lr, batch in zip(lrs, batches, strict=True):
        travelled += lr * (1 - problem.smoothness * max(lrs) / 2)
        noise += problem.smoothness * lr**2 / 2 * problem.variance / batch
    return (problem.gap + noise) / travelled


@given(problem=problems, run=runs)
def test_the_bound_is_the_sum_of_descent_over_all_steps(problem: th.Problem, run: Any) -> None:
    lrs, batches = [lr / problem.smoothness for lr, _ in run], [b for _, b in run]
    bound = th.gradient_bound(problem, lrs=lrs, batch_sizes=batches)
    assert bound.total == pytest.approx(in_a_loop(problem, lrs, batches), rel=1e-9)


@given(problem=problems, run=runs, steps=st.integers(1, 30))
def test_stages_are_their_steps(problem: th.Problem, run: Any, steps: int) -> None:
    stages = [
        th.Stage(steps=steps + i, batch_size=b, lr=lr / problem.smoothness)
        for i, (lr, b) in enumerate(run)
    ]
    each = [stage for stage in stages for _ in range(int(stage.steps))]
    single = th.gradient_bound(
        problem, lrs=[s.lr for s in each], batch_sizes=[s.batch_size for s in each]
    )
    whole = th.bound_of_stages(problem, stages)
    assert whole.bias == pytest.approx(single.bias, rel=1e-9)
    assert whole.variance == pytest.approx(single.variance, rel=1e-9)


def test_sgd_on_a_quadratic_stays_below_the_bound() -> None:
    """f = L x^2 / 2 with exact moments: E x^2 after each step, no sampling."""
    problem = th.Problem(smoothness=2.0, variance=3.0, gap=2.0 / 2 * 4.0)
    for lr, batch in ((0.05, 1.0), (0.4, 4.0), (0.9, 16.0)):
        second, least = 4.0, math.inf
        for step in range(1, 200):
            least = min(least, problem.smoothness**2 * second)
            second = (1 - lr * problem.smoothness) ** 2 * second + lr**2 * problem.variance / batch
            bound = th.gradient_bound(problem, lrs=[lr] * step, batch_sizes=batch)
            assert least <= bound.total * (1 + 1e-12)


@given(problem=problems, run=runs)
def test_no_schedule_needs_fewer_samples_than_the_fewest(problem: th.Problem, run: Any) -> None:
    lrs, batches = [lr / problem.smoothness for lr, _ in run], [b for _, b in run]
    reached = th.gradient_bound(problem, lrs=lrs, batch_sizes=batches).total
    fewest = th.fewest_samples_of_any_schedule(problem, target_sqnorm=reached)
    assert sum(batches) >= fewest * (1 - 1e-9)


def test_a_batch_in_proportion_to_a_small_rate_needs_the_fewest() -> None:
    lrs = np.linspace(1e-5, 3e-5, 1000)
    samples = 50_000.0
    batches = lrs * samples / lrs.sum()
    small = th.Problem(smoothness=1.0, gap=1.0, variance=2.0 * samples / lrs.sum() ** 2)
    reached = th.gradient_bound(small, lrs=lrs, batch_sizes=batches).total
    fewest = th.fewest_samples_of_any_schedule(small, target_sqnorm=reached)
    assert samples == pytest.approx(fewest, rel=1e-4)


def test_a_rate_past_stability_is_refused_with_the_cap() -> None:
    with pytest.raises(ValueError, match=r"0\.5 was given.* smoothness = 0\.5\. .*lr=min"):
        th.gradient_bound(
            th.Problem(smoothness=4.0, variance=1.0, gap=1.0), lrs=[0.1, 0.5], batch_sizes=1
        )


@pytest.mark.parametrize("lrs", [[], [0.0], [0.1, -0.1], [math.nan]])
def test_no_steps_and_no_rates_are_refused(lrs: list[float]) -> None:
    with pytest.raises(ValueError, match="lrs must have a learning rate"):
        th.gradient_bound(ONE, lrs=lrs, batch_sizes=1)


@pytest.mark.parametrize("batch", [0.0, -1.0, math.nan, math.inf])
def test_batches_out_of_range_are_refused(batch: float) -> None:
    with pytest.raises(ValueError, match="finite number of samples above 0"):
        th.gradient_bound(ONE, lrs=[0.1], batch_sizes=[batch])
    with pytest.raises(ValueError, match="batch_size must be a finite number above 0"):
        th.Stage(steps=1, batch_size=batch, lr=0.1)


def test_no_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="stages is empty"):
        th.bound_of_stages(ONE, [])


# A constant batch


def test_the_terms_of_a_problem_are_those_of_the_case() -> None:
    case = SFO["from_problem"]
    problem = th.Problem(smoothness=case["L"], variance=case["sigma2"], gap=case["F0"])
    terms = th.rate_terms(problem, lr=case["alpha"])
    assert terms.bias == pytest.approx(case["C1"], rel=1e-12)
    assert terms.noise == pytest.approx(case["C2"], rel=1e-12)


SHAPES = {
    "constant": (lambda x: 1.0, 1.0, 1.0),
    "half cosine": (lambda x: (1 + math.cos(math.pi * x)) / 2, 1 / 2, 3 / 8),
    "linear": (lambda x: 1 - x, 1 / 2, 1 / 3),
    "square": (lambda x: (1 - x) ** 2, 1 / 3, 1 / 5),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_terms_of_a_schedule_give_its_bound(name: str) -> None:
    shape, mean, mean_square = SHAPES[name]
    steps = 4000
    lrs = [0.5 * shape((t + 0.5) / steps) for t in range(steps)]
    terms = th.rate_terms(ONE, lr=0.5, mean=mean, mean_square=mean_square)
    bound = in_a_loop(ONE, [0.5, *lrs[1:]], [8.0] * steps)
    assert terms.bias / steps + terms.noise / 8 == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("at", range(4))
def test_steps_and_samples_are_those_of_the_case(at: int) -> None:
    given_ = {"batch_size": SFO["b"][at], "target_sqnorm": TARGET}
    assert th.steps_needed(TERMS, **given_) == pytest.approx(SFO["K"][at], rel=1e-12)
    assert th.samples_needed(TERMS, **given_) == pytest.approx(SFO["N"][at], rel=1e-12)


def test_the_critical_batch_is_that_of_the_case() -> None:
    assert th.critical_batch_size(TERMS, target_sqnorm=TARGET) == pytest.approx(SFO["b_star"])
    assert th.fewest_samples(TERMS, target_sqnorm=TARGET) == pytest.approx(SFO["N_star"])


def test_the_form_with_a_floor_is_that_of_the_case() -> None:
    case = SFO["variational_form"]
    terms = th.RateTerms(bias=case["A"], noise=case["B"], floor=case["C"])
    assert th.critical_batch_size(terms, target_sqnorm=case["eps"]) == pytest.approx(case["b_star"])
    assert th.fewest_samples(terms, target_sqnorm=case["eps"]) == pytest.approx(case["N_star"])


@given(problem=problems, lr=st.floats(0.01, 1.9), target=st.floats(1e-3, 10))
def test_the_critical_batch_has_the_fewest_samples(
    problem: th.Problem, lr: float, target: float
) -> None:
    terms = th.rate_terms(problem, lr=lr / problem.smoothness)
    if terms.noise < 1e-6:
        return
    best = th.critical_batch_size(terms, target_sqnorm=target)
    least = th.fewest_samples(terms, target_sqnorm=target)
    steps = th.critical_steps(terms, target_sqnorm=target)
    assert best * steps == pytest.approx(least, rel=1e-9)
    assert terms.noise / best == pytest.approx(target / 2, rel=1e-9)  # half of the room
    for factor in (0.51, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0, 30.0):
        samples = th.samples_needed(terms, batch_size=factor * best, target_sqnorm=target)
        assert samples >= least * (1 - 1e-9)


def test_the_step_of_the_critical_batch_lowers_the_loss_most_per_sample() -> None:
    lr, sqnorm = 0.3, 0.7
    batch = th.critical_batch_size(th.rate_terms(ONE, lr=lr), target_sqnorm=sqnorm)

    def per_sample(b: float) -> float:
        return (lr * (1 - lr / 2) * sqnorm - lr**2 * ONE.variance / (2 * b)) / b

    assert per_sample(batch) == max(per_sample(batch * f) for f in np.linspace(0.5, 2, 301))


def test_too_small_a_batch_never_reaches_the_target() -> None:
    assert math.isinf(th.steps_needed(TERMS, batch_size=24.0, target_sqnorm=TARGET))
    assert math.isfinite(th.steps_needed(TERMS, batch_size=24.1, target_sqnorm=TARGET))


def test_without_noise_one_sample_is_critical_enough() -> None:
    terms = th.RateTerms(bias=40.0, noise=0.0)
    assert th.critical_batch_size(terms, target_sqnorm=TARGET) == 0.0
    assert th.steps_needed(terms, batch_size=1, target_sqnorm=TARGET) == pytest.approx(160.0)


def test_a_smaller_rate_saves_at_most_a_factor_of_four_of_the_samples() -> None:
    at_cap = th.fewest_samples(th.rate_terms(ONE, lr=1.0), target_sqnorm=0.1)
    slow = th.fewest_samples(th.rate_terms(ONE, lr=1e-9), target_sqnorm=0.1)
    assert at_cap / slow == pytest.approx(4.0)
    assert slow == pytest.approx(th.fewest_samples_of_any_schedule(ONE, target_sqnorm=0.1))


def test_a_target_below_the_floor_is_refused() -> None:
    terms = th.RateTerms(bias=1.0, noise=1.0, floor=0.5)
    with pytest.raises(ValueError, match=r"below the floor 0\.5"):
        th.critical_batch_size(terms, target_sqnorm=0.5)
    assert math.isinf(th.steps_needed(terms, batch_size=64, target_sqnorm=0.5))


@pytest.mark.parametrize(("mean", "square"), [(0.0, 0.0), (0.5, 0.2), (0.5, 0.6), (1.1, 1.3)])
def test_means_of_no_schedule_are_refused(mean: float, square: float) -> None:
    with pytest.raises(ValueError, match="no schedule between 0 and 1 has these means"):
        th.rate_terms(ONE, lr=0.1, mean=mean, mean_square=square)


# A decaying rate


@pytest.mark.parametrize("decay", [0.25, 1 / 3, 0.75])
def test_a_decaying_rate_is_that_of_the_case(decay: float) -> None:
    case = SFO["decay"][f"{decay:.4f}"]
    batch = th.decaying_critical_batch_size(TERMS, decay=decay)
    fewest = th.decaying_fewest_samples(TERMS, decay=decay, target_sqnorm=TARGET)
    assert batch == pytest.approx(case["b_star"], rel=1e-9)
    assert fewest == pytest.approx(case["N_star"], rel=1e-9)
    for factor in (0.5, 0.99, 1.01, 2.0):
        steps = th.decaying_steps_needed(
            TERMS, decay=decay, batch_size=factor * batch, target_sqnorm=TARGET
        )
        assert factor * batch * steps > fewest


@pytest.mark.parametrize("decay", [0.1, 0.25, 0.45, 0.55, 0.75, 0.9])
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_the_looser_bound_of_a_decaying_rate_is_above_the_bound(decay: float, steps: int) -> None:
    lrs = [0.5 * t**-decay for t in range(1, steps + 1)]
    terms = th.decaying_rate_terms(ONE, lr=0.5, decay=decay)
    looser = (terms.bias + terms.noise / 4) * steps ** -min(decay, 1 - decay)
    assert in_a_loop(ONE, lrs, [4.0] * steps) <= looser * (1 + 1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, math.nan])
def test_decays_without_a_closed_form_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="gradient_bound"):
        th.decaying_rate_terms(ONE, lr=0.5, decay=decay)


def test_a_decaying_rate_has_no_floor_and_no_overflow() -> None:
    with pytest.raises(ValueError, match="require floor=0"):
        th.decaying_critical_batch_size(th.RateTerms(bias=1, noise=1, floor=0.1), decay=0.25)
    far = {"decay": 0.01, "batch_size": 1.0, "target_sqnorm": 1e-9}
    assert math.isinf(th.decaying_steps_needed(TERMS, **far))
    still = th.RateTerms(bias=1.0, noise=0.0)
    assert th.decaying_fewest_samples(still, decay=0.25, target_sqnorm=0.1) == 0.0
