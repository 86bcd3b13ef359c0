"""The batch as a multiple of the noise scale, and the papers whose formula it is."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
from batch_rules import TESTED, asked, cases, moments_of, moments_of_rows, see, size_told, told
from hypothesis import given
from hypothesis import strategies as st

import largebatch as lb
from largebatch.core.codec import decode, encode
from largebatch.core.formulas import efficiency
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.rule import Rule
from largebatch.methods import cosine_test, gradient_diversity, noise_scale_control
from largebatch.rules import NoiseScaleControl, NormTest
from largebatch.rules.kinds import KINDS
from largebatch.rules.noise_scale import kappa_of_cosine
from largebatch.rules.sizes import whole_batch

HALF = st.tuples(*[st.floats(-9, 9)] * 4).map(np.array)


# Twins: the formulas of GradientDiversity and CosineTest as they were rules of their own.


def diversity_twin(ratio: float, *, delta: float) -> float:
    return delta * (1.0 + ratio)


def cosine_twin(ratio: float, *, target: float) -> float:
    return 2.0 * target / (1.0 - target) * ratio


def decided_by(required: Any, seen: Measurement) -> tuple[int, float]:
    """Return the batch of a former rule's formula, and by how much it may differ after rounding.

    Of negative squared norms alone the batch doubles, since nothing tells how large it should be.
    """
    moments, now = seen.moments, seen.batch_size
    facts = {"ranks": seen.ranks, "dataset_size": seen.dataset_size}
    if moments is None or not (math.isfinite(moments.variance) and math.isfinite(moments.sqnorm)):
        return now, 0.0
    variance, sqnorm = moments.variance, moments.sqnorm
    if variance <= 0.0:
        return (whole_batch(required(0.0), **facts) if sqnorm > 0.0 else now), 0.0
    share = sqnorm / variance
    ratio = 1.0 / share if share > 0.0 else math.inf
    wanted = required(ratio)
    if math.isnan(wanted):
        return now, 0.0
    if math.isinf(wanted):
        return whole_batch(2.0 * now, **facts), 0.0
    return whole_batch(wanted, **facts), 1.0 + 1e-9 * wanted


def check_decided(rule: Rule, seen: Measurement, required: Any) -> None:
    """Compare with the formula, save where the batch in hand lies at the required one."""
    expected, slack = decided_by(required, seen)
    decision = told(rule, seen)
    assert abs(decision.next_batch_size - expected) <= slack, (rule, seen, decision)
    assert decision.measure_next == {"moments"}


def drawn(seed: int, count: int = 2000) -> Any:
    """Yield measurements of all magnitudes, whole numbers and edge cases among them."""
    draw = random.Random(seed)
    edges = [0.0, 1.0, 0.25, 1 / 3, 5e-324, 1e-300, 1e300, math.inf, math.nan]
    for _ in range(count):
        batch = draw.randint(2, 4096)
        variance, sqnorm = (
            draw.choice(
                [draw.choice(edges), float(draw.randint(0, 4096)), 10 ** draw.uniform(-9, 9)]
            )
            for _ in range(2)
        )
        moments = moments_of(variance, sqnorm, batch_size=batch)
        if draw.random() < 0.5:  # an unbiased squared norm that is a short number
            moments = moments_of(variance, sqnorm + variance / batch, batch_size=batch)
        yield (
            draw,
            see(
                moments if draw.random() < 0.98 else None,
                batch_size=batch,
                ranks=draw.choice([1, 1, 8]),
                dataset_size=draw.choice([None, 50_000]),
            ),
        )


def test_the_rule_decides_as_the_rule_for_the_diversity_did() -> None:
    for draw, seen in drawn(seed=0):
        delta = draw.choice([0.1, 0.5, 1.0, 1e-300, 1e300, draw.uniform(0.001, 10.0)])
        for rule in (gradient_diversity(delta=delta), old_kind("GradientDiversity", delta=delta)):
            check_decided(rule, seen, lambda ratio, d=delta: diversity_twin(ratio, delta=d))


def test_the_rule_decides_as_the_rule_for_the_cosine_did() -> None:
    for draw, seen in drawn(seed=1):
        most = math.nextafter(1.0, 0.0)
        target = draw.choice([0.5, 0.75, 0.9, 1e-300, most, draw.uniform(0.001, 0.999)])
        for rule in (cosine_test(target=target), old_kind("CosineTest", target=target)):
            check_decided(rule, seen, lambda ratio, c=target: cosine_twin(ratio, target=c))


def old_kind(kind: str, **fields: float) -> Rule:
    """Return what a rule that an earlier version wrote is today."""
    rule: Rule = decode(Rule, {"kind": kind, **fields}, kinds=KINDS)
    assert isinstance(rule, NoiseScaleControl)
    return rule


def test_a_norm_test_is_the_same_rule_up_to_a_sample() -> None:
    """ratio / eta / eta and kappa x ratio round differently."""
    for _, seen in drawn(seed=2, count=300):
        test = size_told(NormTest(eta=0.5**-0.5, denominator="unbiased"), seen)
        control = size_told(NoiseScaleControl(kappa=0.5), seen)
        assert abs(control - test) <= 1 + 1e-9 * test


@given(noise=st.floats(1.0, 1e6), sqnorm=st.floats(1e-3, 1e3), kappa=st.floats(0.01, 10.0))
def test_the_batch_is_kappa_times_the_noise_scale(
    noise: float, sqnorm: float, kappa: float
) -> None:
    moments = moments_of(noise * sqnorm, sqnorm + noise * sqnorm / 64)
    size = size_told(NoiseScaleControl(kappa=kappa), see(moments))
    assert size == pytest.approx(max(kappa * noise, 2), abs=1.01, rel=1e-6)
    assert abs(efficiency(noise_scale=noise, base_batch_size=0, batch_size=noise) - 0.5) < 1e-9


@cases([case for case in TESTED if case["stats"]["tr_sigma"] is not None])
def test_a_case_has_its_noise_scale(case: dict) -> None:
    moments = moments_of_rows(case["G"])
    expected = case["stats"].get("b_simple_unbiased")
    if expected is not None and float(expected) < math.inf:
        seen = see(moments, batch_size=len(case["G"]))
        found = size_told(NoiseScaleControl(kappa=1000.0), seen)
        assert abs(found - max(math.ceil(1000 * float(expected) - 1e-6), 2)) <= 1


def test_squared_norms_below_zero_alone_double_the_batch_and_no_more() -> None:
    """That is the sign of a data set below its noise scale, where batches are not independent."""
    lost = moments_of(64.0, 0.5)
    assert lost.sqnorm < 0.0
    for rule in (NoiseScaleControl(), gradient_diversity(), cosine_test()):
        for times in (1, 2, 3):
            assert told(rule, see(lost, dataset_size=900), times=times).next_batch_size == 64
        assert size_told(rule, see(lost, dataset_size=900)) == 128
        assert size_told(rule, see(lost, dataset_size=100)) == 100


def test_neither_noise_nor_signal_keeps_the_batch() -> None:
    for rule in (NoiseScaleControl(), gradient_diversity(), cosine_test()):
        decision = told(rule, see(moments_of(0.0, 0.0)), times=9)
        assert decision.next_batch_size == 64
        assert decision.reason == "noise scale not known yet; batch size 64 stays"
        assert asked(rule, see()).measure_next == {"moments"}


def test_the_preconditioned_moments_are_read_where_they_are_named() -> None:
    seen = see(moments_of(1.0, 1.0), preconditioned_moments=moments_of(640.0, 11.0))
    rule = noise_scale_control(kappa=2.0, statistic="preconditioned_moments")
    assert told(rule, seen).measure_next == {"preconditioned_moments"}
    assert size_told(rule, seen) == 1280
    with pytest.raises(ValueError, match="preconditioned_moments"):
        NoiseScaleControl(statistic="loss")  # type: ignore[arg-type]


def test_the_batch_comes_down_where_it_is_certainly_too_large() -> None:
    small = moments_of(6.4, 1.1)
    assert size_told(NoiseScaleControl(), see(small)) == 7


@pytest.mark.parametrize("kappa", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_multiple_is_refused(kappa: float) -> None:
    with pytest.raises(
        ValueError,
        match=r"kappa must be a finite number above 0. Example: NoiseScaleControl\(kappa=1.0\)",
    ):
        NoiseScaleControl(kappa=kappa)


def test_the_method_is_the_rule() -> None:
    assert noise_scale_control(kappa=2.0) == NoiseScaleControl(kappa=2.0)


@pytest.mark.parametrize("offset", [-1.0, math.nan, math.inf])
def test_an_impossible_offset_is_refused(offset: float) -> None:
    with pytest.raises(ValueError, match="offset is a number of samples and must be 0 or more"):
        NoiseScaleControl(offset=offset)


# DiveBatch's diversity, by the definition and by its identity with the noise scale.


def diversity(rows: Any) -> float:
    """sum |g_i|^2 / |sum g_i|^2."""
    g = np.asarray(rows, dtype=np.float64)
    return float((g**2).sum() / (g.sum(axis=0) ** 2).sum())


def thousands(variance: float, sqnorm: float) -> int:
    """What delta = 1000 asks for, of the true gradient's squared norm."""
    true = moments_of(variance, sqnorm, batch_size=2.0**60)
    return size_told(gradient_diversity(delta=1000.0), see(true))


@given(rows=st.lists(st.tuples(*[st.floats(-9, 9)] * 3), min_size=1, max_size=8))
def test_diversity_times_samples_is_one_and_the_noise_scale(rows: Any) -> None:
    """Over a whole data set, whose variance has the divisor N."""
    g = np.asarray(rows)
    mean = g.mean(axis=0)
    if mean @ mean < 1e-6:
        return
    variance = ((g - mean) ** 2).sum() / len(g)
    assert thousands(variance, mean @ mean) == pytest.approx(1000 * len(g) * diversity(g), abs=1.01)


@cases([case for case in TESTED if "gradient_diversity_sum_over_normsum" in case["stats"]])
def test_a_case_has_its_diversity(case: dict[str, Any]) -> None:
    stats, n = case["stats"], case["stats"]["b"]
    assert diversity(case["G"]) == pytest.approx(
        stats["gradient_diversity_sum_over_normsum"], rel=1e-9
    )
    expected = 1000 * n * stats["gradient_diversity_sum_over_normsum"]
    found = thousands(stats["tr_sigma"] * (n - 1) / n, stats["mean_grad_sq_norm"])
    assert found == pytest.approx(expected, abs=1.01)


@given(
    noise=st.just(0.0) | st.floats(1e-300, 1e6),
    sqnorm=st.floats(1e-3, 1e3),
    delta=st.floats(0.01, 1.0),
)
def test_the_batch_of_the_diversity_is_that_of_the_noise_scale(
    noise: float, sqnorm: float, delta: float
) -> None:
    moments = moments_of(noise * sqnorm, sqnorm + noise * sqnorm / 64)
    size = size_told(gradient_diversity(delta=delta), see(moments))
    assert size == pytest.approx(max(delta * (1 + noise), 2), abs=1.01, rel=1e-6)


@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan])
def test_an_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match=r"Example: lb.methods.gradient_diversity\(delta=0.1\)"):
        gradient_diversity(delta=delta)


# SimiGrad's cosine of two halves, by the definition and by its identity with the moments.


def cosine_of_halves(moments: GradientMoments) -> float:
    """|G|^2 / (|G|^2 + 2 variance / B), of moments from two equal parts."""
    return moments.sqnorm / (moments.sqnorm + 2.0 * moments.variance / moments.batch_size)


def of_halves(a: Any, b: Any, *, batch_size: int = 64) -> GradientMoments:
    """The moments of two equal parts."""
    g = (a + b) / 2
    spread = ((a - g) ** 2).sum() + ((b - g) ** 2).sum()  # of means over half the batch
    return moments_of(spread * batch_size / 2, float(g @ g), batch_size=batch_size, parts=2)


@given(a=HALF, b=HALF)
def test_of_two_parts_the_cosine_is_theirs_over_the_mean_of_their_squares(a: Any, b: Any) -> None:
    whole = (a @ a + b @ b) / 2
    if whole < 1e-3:
        return
    assert cosine_of_halves(of_halves(a, b)) == pytest.approx(a @ b / whole, abs=1e-9)


def test_the_cosine_is_what_that_of_many_halves_comes_to() -> None:
    generator = np.random.default_rng(0)
    mean, dimensions, batch = np.zeros(400), 400, 64
    mean[0] = 2.0
    halves = mean + generator.normal(size=(2000, 2, dimensions)) / math.sqrt(batch / 2)
    dots = (halves[:, 0] * halves[:, 1]).sum(axis=1)
    norms = np.linalg.norm(halves, axis=2).prod(axis=1)
    exact = moments_of(dimensions, 4.0 + dimensions / batch, batch_size=batch)
    assert cosine_of_halves(exact) == pytest.approx((dots / norms).mean(), rel=0.01)


@given(variance=st.floats(1e-3, 1e6), sqnorm=st.floats(1e-3, 1e3), target=st.floats(0.05, 0.95))
def test_at_the_proposed_batch_the_cosine_is_the_target(
    variance: float, sqnorm: float, target: float
) -> None:
    batch = kappa_of_cosine(target) * variance / sqnorm
    there = moments_of(variance, sqnorm + variance / batch, batch_size=batch)
    assert cosine_of_halves(there) == pytest.approx(target, rel=1e-6)


@given(variance=st.floats(1.0, 1e6), target=st.floats(0.05, 0.95))
def test_a_cosine_test_is_a_norm_test_on_the_unbiased_squared_norm(
    variance: float, target: float
) -> None:
    seen = see(moments_of(variance, 1.0 + variance / 64))
    eta = math.sqrt((1 - target) / (2 * target))
    test = size_told(NormTest(eta=eta, denominator="unbiased"), seen)
    assert abs(size_told(cosine_test(target=target), seen) - test) <= 1 + 1e-9 * test


def test_a_cosine_test_grows_below_the_target_and_shrinks_above() -> None:
    small = see(moments_of(640.0, 1.0 + 10.0))
    large = see(moments_of(6.4, 1.0 + 0.1))
    decision = told(cosine_test(target=0.75), small)
    assert decision.reason == "noise scale 640 [640, 640] x kappa 6; batch size 3840"
    assert size_told(cosine_test(target=0.75), large) == 39


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, math.nan])
def test_an_impossible_target_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match=r"Example: lb.methods.cosine_test\(target=0.75\)"):
        cosine_test(target=target)


@pytest.mark.parametrize(
    ("kind", "fields", "today"),
    [
        ("GradientDiversity", {"delta": 0.3}, gradient_diversity(delta=0.3)),
        ("CosineTest", {"target": 0.6}, cosine_test(target=0.6)),
    ],
)
def test_a_wrapped_rule_of_0_1_is_the_same_rule_today(
    kind: str, fields: dict[str, float], today: NoiseScaleControl
) -> None:
    """So a checkpoint of `Averaged(GradientDiversity(...))` resumes in the unchanged program."""
    plain = {"kind": "Averaged", "rule": {"kind": kind, **fields}}
    whole = encode(lb.Averaged(today), kind=True)
    old = {**whole, **plain}
    assert decode(lb.Rule, old, kinds=KINDS) == lb.Averaged(today)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert getattr(lb, kind)(**fields) == today
