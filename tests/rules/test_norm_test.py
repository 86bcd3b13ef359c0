"""The norm test: published cases, and what its proposal keeps to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from batch_rules import (
    CHUNKED,
    TESTED,
    asked,
    cases,
    check_case,
    moments_of,
    moments_of_rows,
    never_shrinking,
    number,
    see,
    seen_in,
    size_asked,
    size_told,
    told,
    value_of,
)
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Reading
from largebatch.core.rule import chain
from largebatch.rules import (
    AdaScale,
    Averaged,
    ClampBatch,
    Every,
    LimitGrowth,
    LinearScaling,
    NoiseScaleControl,
    NormTest,
    SqrtScaling,
)
from largebatch.rules.norm_test import required_batch, theta_max
from largebatch.rules.sizes import LARGEST

POSITIVE = st.floats(1e-6, 1e6)
ETAS = st.floats(0.05, 2.0)
SIZES = st.integers(2, 5000)


@cases(TESTED)
def test_a_case_gets_its_next_size_and_its_least_level(case: dict[str, Any]) -> None:
    decision = check_case(NormTest(eta=case["params"]["eta"]), case, "norm")
    expected = case["expected"]["norm"]
    if case["stats"]["tr_sigma"] is None:
        assert decision.reason == ""
        return
    theta = value_of(decision.reason, "theta_max")
    if expected["passes"] is None:
        assert theta is None
    elif "theta_max_cockpit" in expected:
        assert theta == pytest.approx(expected["theta_max_cockpit"], rel=1e-3)
        assert (" <= " in decision.reason) == (theta <= case["params"]["eta"])
    else:
        assert theta == math.inf


@cases([case for case in TESTED if len(case["G"]) > 1])
def test_the_rows_of_a_case_have_its_moments(case: dict[str, Any]) -> None:
    moments = moments_of_rows(case["G"])
    assert moments.variance == pytest.approx(case["stats"]["tr_sigma"], rel=1e-12)
    assert moments.batch_sqnorm == pytest.approx(case["stats"]["mean_grad_sq_norm"], rel=1e-12)
    assert moments.sqnorm == pytest.approx(case["stats"]["unbiased_grad_sq"], rel=1e-9, abs=1e-12)


@cases(CHUNKED)
def test_moments_of_micro_batches_get_the_next_size_of_a_case(case: dict[str, Any]) -> None:
    params, stats = case["params"], case["stats"]
    moments = moments_of(
        stats["tr_sigma_chunks"],
        stats["mean_grad_sq_norm"],
        batch_size=32,
        parts=params["num_chunks"],
    )
    rule = never_shrinking(NormTest(eta=params["eta"]), most=params["max_batch_size"])
    size = asked(rule, see(moments, batch_size=32)).next_batch_size
    assert size == case["expected"]["norm"]["next_batch_size"]


def test_a_growth_limit_and_a_cap_bound_the_next_size_of_a_case() -> None:
    (case,) = [case for case in TESTED if case["name"] == "huge_variance_hits_cap"]
    rule, seen = NormTest(eta=0.05), seen_in(case)  # requires 2269, of 8
    assert size_asked(chain(rule, LimitGrowth(factor=2.5)), seen) == 20
    assert size_asked(chain(rule, LimitGrowth(factor=1000.0), ClampBatch(max=1024)), seen) == 1024


@given(variance=POSITIVE, sqnorm=POSITIVE, eta=ETAS, size=st.none() | SIZES)
def test_the_proposed_size_passes_its_own_test_and_one_sample_less_does_not(
    variance: float, sqnorm: float, eta: float, size: int | None
) -> None:
    ratio = variance / sqnorm
    least = math.ceil(required_batch(ratio=ratio, level=eta, dataset_size=size))
    passing = theta_max(ratio=ratio, batch_size=least, dataset_size=size)
    assert passing <= eta * (1 + 1e-7)
    if least > 1:
        failing = theta_max(ratio=ratio, batch_size=least - 1, dataset_size=size)
        assert failing >= eta * (1 - 1e-7)
    if size is not None:
        assert least <= size


@given(variance=POSITIVE, sqnorm=POSITIVE, eta=ETAS)
def test_a_large_population_is_an_infinite_one_and_a_small_one_asks_for_less(
    variance: float, sqnorm: float, eta: float
) -> None:
    ratio = variance / sqnorm
    plain = required_batch(ratio=ratio, level=eta)
    large = required_batch(ratio=ratio, level=eta, dataset_size=10**22)
    assert large == pytest.approx(plain, rel=1e-4)
    assert required_batch(ratio=ratio, level=eta, dataset_size=100) <= max(plain, 1.0)


def test_the_whole_population_passes_whatever_its_noise() -> None:
    assert theta_max(ratio=math.inf, batch_size=60, dataset_size=60) == 0.0
    assert required_batch(ratio=math.inf, level=0.5, dataset_size=60) == 60.0
    assert required_batch(ratio=4.0, level=0.5, dataset_size=1) == 1.0
    assert required_batch(ratio=0.0, level=0.5, dataset_size=1) == 0.0


def test_the_finite_population_by_hand() -> None:
    """16 / B (31 - B) / 30 <= 1 at B = 16 x 31 / 46 = 10.8."""
    seen = see(moments_of(4.0, 1.0, batch_size=8), batch_size=8, dataset_size=31)
    decision = asked(NormTest(eta=0.5, finite_population=True), seen)
    assert decision.next_batch_size == 11
    assert value_of(decision.reason, "theta_max") == pytest.approx(
        math.sqrt(4.0 / 8 * 23 / 30), rel=1e-3
    )
    assert decision.measure_next == {"moments"}


def test_the_factor_is_that_of_samples_drawn_without_replacement() -> None:
    """Over all pairs of a population the mean squared error of their mean is its variance with the
    divisor N, over 2, times (N - 2) / (N - 1)."""
    g = np.array([[1.0, 0.0], [2.0, -1.0], [0.5, 3.0], [-2.0, 1.0], [0.0, 0.5]])
    mean = g.mean(axis=0)
    pairs = [(g[i] + g[j]) / 2 for i in range(5) for j in range(i)]
    error = np.mean([((pair - mean) ** 2).sum() for pair in pairs])
    population = ((g - mean) ** 2).sum() / 5
    level = theta_max(ratio=population / (mean @ mean), batch_size=2, dataset_size=5)
    assert error / (mean @ mean) == pytest.approx(level**2)


@given(variance=POSITIVE, sqnorm=POSITIVE, eta=ETAS)
def test_the_unbiased_test_is_control_by_the_noise_scale(
    variance: float, sqnorm: float, eta: float
) -> None:
    seen = see(moments_of(variance, sqnorm))
    test = size_told(NormTest(eta=eta, denominator="unbiased"), seen)
    control = size_told(NoiseScaleControl(kappa=1 / eta**2), seen)
    assert abs(test - control) <= 1 + 1e-9 * control
    true = variance / (sqnorm - variance / 64) if sqnorm > variance / 64 else math.inf
    if true / eta**2 > 66.0 and variance / 64 < 0.999 * sqnorm:
        assert test == pytest.approx(true / eta**2, rel=1e-6, abs=1.01)


@given(variance=st.floats(1.0, 1e5), eta=st.floats(0.3, 3.0))
def test_a_test_with_a_memory_passes_at_the_batch_that_it_proposes(
    variance: float, eta: float
) -> None:
    test = NormTest(eta=eta, denominator="unbiased")
    sizes = [64]
    for _ in range(2):
        batch = sizes[-1]
        moments = moments_of(variance, 1.0 + variance / batch, batch_size=batch)
        sizes.append(size_told(test, see(moments, batch_size=batch)))
    assert abs(sizes[1] - sizes[2]) <= 1, "it stays there"
    assert sizes[1] == pytest.approx(max(variance / eta**2, 2.0), abs=1.01, rel=1e-6)


def test_a_test_with_a_memory_needs_four_measurements_and_shows_its_interval() -> None:
    test = NormTest(eta=1.0, denominator="unbiased")
    seen = see(moments_of(640.0, 11.0))
    for times in (1, 2, 3):
        decision = told(test, seen, times=times)
        assert decision.reason == "theta_max not known yet; batch size 64 stays"
    decision = told(test, seen)
    assert decision.reason == "theta_max 3.16 [3.16, 3.16] > eta 1, batch too small; batch size 640"
    large = replace(seen, batch_size=2560)
    assert size_told(test, large) == 640, "it may come down"


def test_the_memory_keeps_the_noise_scale_of_a_finite_data_set() -> None:
    """64 samples, batches of 32 without replacement: E|g_B|^2 = |G|^2 + 128 / 32 (64 - 32) / 64 is
    3 with |G|^2 = 1. So the noise scale is 128 and theta_max sqrt(128 / 32 x 32 / 63) = 1.425."""
    test = NormTest(eta=0.5, denominator="unbiased", finite_population=True)
    seen = see(moments_of(128.0, 3.0, batch_size=32), batch_size=32, dataset_size=64)
    assert seen.moments is not None
    assert seen.moments.sqnorm == -1.0
    decision = told(test, seen)
    assert (
        decision.reason == "theta_max 1.43 [1.43, 1.43] > eta 0.5, batch too small; batch size 57"
    )
    assert math.sqrt(128 / 32 * 32 / 63) == pytest.approx(1.425, abs=1e-3)


def test_a_finite_data_set_that_is_wholly_in_hand_passes() -> None:
    """Then the batch's gradient is the data set's, whose squared norm is 1."""
    test = NormTest(eta=0.5, denominator="unbiased", finite_population=True)
    whole = see(moments_of(128.0, 1.0, batch_size=64), batch_size=64, dataset_size=64)
    decision = told(test, whole)
    assert decision.next_batch_size <= 64
    assert decision.reason.startswith("theta_max 0 [0, 0] < eta 0.5")


@given(
    size=st.integers(50, 400),
    batch=st.integers(4, 40),
    eta=st.floats(0.4, 1.5),
    variance=st.floats(1.0, 1e4),
)
def test_without_replacement_the_proposal_is_that_of_the_data_sets_own_gradient(
    size: int, batch: int, eta: float, variance: float
) -> None:
    expected = 1.0 + variance / batch * (size - batch) / size
    seen = see(
        moments_of(variance, expected, batch_size=batch), batch_size=batch, dataset_size=size
    )
    test = NormTest(eta=eta, denominator="unbiased", finite_population=True)
    required = required_batch(ratio=variance, level=eta, dataset_size=size)
    assert size_told(test, seen) == pytest.approx(max(required, 2), abs=1.01, rel=1e-6)


@given(variance=st.floats(1e-3, 1e3), eta=ETAS)
def test_noise_alone_asks_for_the_batch_over_eta_squared_in_the_mean(
    variance: float, eta: float
) -> None:
    """Without a signal the mean of |g|^2 is variance / B."""
    required = size_asked(NormTest(eta=eta), see(moments_of(variance, variance / 64)))
    assert required == pytest.approx(64 / eta**2, rel=0.02, abs=2)


def test_a_batch_without_bound_is_the_data_set_or_the_largest() -> None:
    lost = moments_of(2.0, 0.0, batch_size=8)
    decision = asked(NormTest(), see(lost, batch_size=8, dataset_size=60_000))
    assert decision.next_batch_size == 60_000
    assert decision.reason == (
        "theta_max inf > eta 0.5, test failed, squared norm is 0; "
        "batch size 60000, the whole data set"
    )
    assert size_asked(NormTest(), see(lost, batch_size=8)) == LARGEST
    assert size_asked(chain(NormTest(), LimitGrowth()), see(lost, batch_size=8)) == 16
    tiny = moments_of(1e300, 1e-300, batch_size=8)
    assert size_asked(NormTest(), see(tiny, batch_size=8)) == LARGEST


@pytest.mark.parametrize(
    ("variance", "sqnorm"),
    [(0.0, 0.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)],
)
@pytest.mark.parametrize("denominator", ["plug-in", "unbiased"])
def test_moments_that_define_no_test_value_keep_the_batch(
    variance: float, sqnorm: float, denominator: Any
) -> None:
    seen = see(moments_of(variance, sqnorm, batch_size=8), batch_size=8)
    decision = told(NormTest(denominator=denominator), seen)
    unknown = {
        "plug-in": "theta_max unknown",
        "unbiased": "theta_max not known yet; batch size 8 stays",
    }
    assert (decision.next_batch_size, decision.reason) == (8, unknown[denominator])


def test_no_noise_asks_for_the_least_batch_that_still_has_a_variance() -> None:
    quiet = moments_of(0.0, 3.0)
    assert size_asked(NormTest(), see(quiet)) == 2
    assert size_asked(NormTest(), see(quiet, ranks=4)) == 4
    assert size_asked(never_shrinking(NormTest(), most=100), see(quiet)) == 64


def test_a_step_that_did_not_measure_keeps_the_batch_and_asks_again() -> None:
    proposed = Decision(next_batch_size=77, base_steps=1.0, reason="before")
    _, decision = NormTest().update(None, see(), proposed)
    assert decision == replace(proposed, measure_next=frozenset({"moments"}))


@given(variance=POSITIVE, sqnorm=POSITIVE, power=st.integers(-30, 30))
def test_a_loss_in_other_units_gets_the_same_batch(
    variance: float, sqnorm: float, power: int
) -> None:
    unit = 4.0**power
    sizes = [
        size_told(NormTest(denominator=d), see(moments_of(variance * u, sqnorm * u)))
        for d in ("plug-in", "unbiased")
        for u in (1.0, unit)
    ]
    assert sizes[0] == sizes[1]
    assert sizes[2] == sizes[3]


def test_the_preconditioned_moments_are_tested_where_they_are_named() -> None:
    seen = see(moments_of(1.0, 1.0), preconditioned_moments=moments_of(640.0, 1.0))
    assert size_asked(NormTest(statistic="preconditioned_moments"), seen) == 2560
    seen = replace(seen, preconditioned_moments=moments_of(640.0, 11.0))
    test = NormTest(eta=1.0, denominator="unbiased", statistic="preconditioned_moments")
    assert told(test, seen).measure_next == {"preconditioned_moments"}
    assert size_told(test, seen) == 640


def run(rule: Any, *, steps: int, variance: float = 1e4, limit: int = 10**6) -> list[Any]:
    """Steps whose moments are those of a fixed variance and signal, given where they were asked."""
    decider = Decider.start(
        rule, base_batch_size=8, batch_size=8, dataset_size=limit, budget=Budget(steps=steps)
    )
    record = []
    for _ in range(steps):
        batch = decider.batch_size
        m = moments_of(variance, 1.0 + variance / batch, batch_size=batch)
        moments = m if "moments" in decider.measure else None
        seen = decider.see(Reading(samples=batch, moments=moments), base_lr=0.1)
        decider, decision = decider.decide(seen)
        record.append((seen, decision))
    return record


def test_between_tests_the_batch_in_hand_stays() -> None:
    rule = chain(Every(NormTest(eta=0.5), steps=4), LimitGrowth(factor=2.0, shrink=1.0))
    record = run(rule, steps=13)
    assert [seen.batch_size for seen, _ in record] == [8] + [16] * 4 + [32] * 4 + [64] * 4
    assert [seen.moments is not None for seen, _ in record] == [i % 4 == 0 for i in range(13)]
    assert [bool(decision.reason) for _, decision in record] == [i % 4 == 0 for i in range(13)]


def test_a_neighbour_that_measures_each_step_does_not_make_the_test_more_often() -> None:
    test = Every(NormTest(eta=0.5), steps=4)
    rule = chain(test, AdaScale(), LimitGrowth(factor=2.0, shrink=1.0))
    record = run(rule, steps=9)
    assert all(seen.moments is not None for seen, _ in record)
    assert [seen.batch_size for seen, _ in record] == [8] + [16] * 4 + [32] * 4


@pytest.mark.parametrize(
    ("follows", "factor"),
    [
        (None, lambda s: 1.0),
        (SqrtScaling(), math.sqrt),
        (LinearScaling(), float),
    ],
    ids=["nothing", "square-root", "linear"],
)
def test_the_rate_follows_the_batch_in_hand_by_another_rule(follows: Any, factor: Any) -> None:
    test = chain(Every(NormTest(eta=0.5), steps=2), LimitGrowth(factor=2.0, shrink=1.0))
    rule = test if follows is None else chain(test, follows)
    record = run(rule, steps=12)
    assert record[-1][0].batch_size > 100
    for seen, decision in record:
        assert decision.lr_multiplier == pytest.approx(factor(seen.batch_size / 8))


def test_the_rate_follows_the_batch_in_hand_by_adascale() -> None:
    test = chain(Every(NormTest(eta=0.5), steps=2), LimitGrowth(factor=2.0, shrink=1.0))
    for seen, decision in run(chain(AdaScale(), test), steps=12, variance=100.0):
        scale = seen.batch_size / 8
        assert decision.lr_multiplier == pytest.approx(scale * (100 + 8) / (100 + scale * 8))


def test_averages_grow_to_the_batch_that_the_noise_asks_for_and_stay_there() -> None:
    """variance / (eta^2 (1 + variance / B)) <= B at B = variance / eta^2 - variance."""
    test = Averaged(NormTest(eta=0.5), window=200.0)
    rule = chain(Every(test, steps=2), LimitGrowth(factor=2.0, shrink=1.0))
    sizes = [seen.batch_size for seen, _ in run(rule, steps=60, variance=100.0)]
    assert sizes == sorted(sizes)
    assert 290 <= sizes[-1] <= 300


def test_the_bounds_of_a_chain_keep_the_batch_between_them() -> None:
    rule = chain(NormTest(eta=0.1), LimitGrowth(factor=3.0, shrink=1.0), ClampBatch(max=500))
    sizes = [seen.batch_size for seen, _ in run(rule, steps=7)]
    assert sizes == [8, 24, 72, 216, 500, 500, 500]


def test_two_rules_that_propose_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="NormTest and Every\\(NoiseScaleControl\\)"):
        chain(NormTest(), Every(NoiseScaleControl(), steps=2))
    with pytest.raises(ValueError, match="undo the bound"):
        chain(LimitGrowth(), NormTest())


@pytest.mark.parametrize(
    "make",
    [
        lambda: NormTest(eta=0.0),
        lambda: NormTest(eta=-0.5),
        lambda: NormTest(eta=math.nan),
        lambda: NormTest(eta=math.inf),
        lambda: NormTest(denominator="biased"),  # type: ignore[arg-type]
    ],
)
def test_an_impossible_test_is_refused_with_an_example(make: Any) -> None:
    with pytest.raises(ValueError, match=r"was given.*Example: NormTest\("):
        make()


def test_an_unknown_statistic_is_refused_and_an_unknown_data_set() -> None:
    with pytest.raises(ValueError, match="preconditioned_moments"):
        NormTest(statistic="loss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dataset_size"):
        Decider.start(NormTest(finite_population=True), base_batch_size=8, batch_size=8)


def test_the_numbers_of_a_case_are_read_as_they_are_written() -> None:
    assert number("inf") == math.inf
    assert number(None) is None
