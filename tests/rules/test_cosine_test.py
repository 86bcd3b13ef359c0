"""SimiGrad's cosine of two halves, by the definition and by its identity with the moments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from batch_rules import asked, moments_of, see, size_asked
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.measurement import GradientMoments
from largebatch.rules import CosineTest, NormTest
from largebatch.rules.cosine_test import cosine_batch, cosine_of_halves

HALF = st.tuples(*[st.floats(-9, 9)] * 4).map(np.array)


def of_halves(a: Any, b: Any, *, batch_size: int = 64) -> GradientMoments:
    """The moments of two equal parts."""
    g = (a + b) / 2
    spread = ((a - g) ** 2).sum() + ((b - g) ** 2).sum()  # of means over half the batch
    return moments_of(spread * batch_size / 2, float(g @ g), batch_size=batch_size, parts=2)


@given(a=HALF, b=HALF)
def test_of_two_parts_it_is_their_cosine_over_the_mean_of_their_squares(a: Any, b: Any) -> None:
    whole = (a @ a + b @ b) / 2
    if whole < 1e-3:
        return
    assert cosine_of_halves(of_halves(a, b)) == pytest.approx(a @ b / whole, abs=1e-9)


def test_it_is_what_the_cosine_of_many_halves_comes_to() -> None:
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
    batch = cosine_batch(ratio=variance / sqnorm, target=target)
    there = moments_of(variance, sqnorm + variance / batch, batch_size=batch)
    assert cosine_of_halves(there) == pytest.approx(target, rel=1e-6)


@given(variance=st.floats(1.0, 1e6), target=st.floats(0.05, 0.95))
def test_it_is_a_norm_test_on_the_unbiased_squared_norm(variance: float, target: float) -> None:
    seen = see(moments_of(variance, 1.0 + variance / 64))
    eta = math.sqrt((1 - target) / (2 * target))
    test = size_asked(NormTest(eta=eta, denominator="unbiased"), seen)
    assert abs(size_asked(CosineTest(target=target), seen) - test) <= 1


def test_it_grows_below_the_target_and_shrinks_above() -> None:
    small = see(moments_of(640.0, 1.0 + 10.0))
    large = see(moments_of(6.4, 1.0 + 0.1))
    assert asked(CosineTest(target=0.75), small).reason == "cosine 0.04762 for 0.75; batch 3840"
    assert size_asked(CosineTest(target=0.75), large) == 39


def test_noise_alone_is_the_data_set_and_nothing_at_all_keeps_the_batch() -> None:
    assert size_asked(CosineTest(), see(moments_of(64.0, 0.5), dataset_size=900)) == 900
    decision = asked(CosineTest(), see(moments_of(0.0, 0.0)))
    assert (decision.next_batch_size, decision.reason) == (64, "cosine unknown for 0.75")
    assert asked(CosineTest(), see()).measure_next == {"moments"}


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, math.nan])
def test_an_impossible_target_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match=r"as in CosineTest\(target=0.75\)"):
        CosineTest(target=target)
