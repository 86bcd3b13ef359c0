"""DiveBatch's diversity, by the definition and by its identity with the noise scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from batch_rules import TESTED, asked, cases, moments_of, see, size_asked
from hypothesis import given
from hypothesis import strategies as st

from largebatch.rules import GradientDiversity


def diversity(rows: Any) -> float:
    """sum |g_i|^2 / |sum g_i|^2."""
    g = np.asarray(rows, dtype=np.float64)
    return float((g**2).sum() / (g.sum(axis=0) ** 2).sum())


def thousands(variance: float, sqnorm: float) -> int:
    """What delta = 1000 asks for, of the true gradient's squared norm."""
    true = moments_of(variance, sqnorm, batch_size=math.inf)
    return size_asked(GradientDiversity(delta=1000.0), see(true))


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


@given(noise=st.floats(0.0, 1e6), sqnorm=st.floats(1e-3, 1e3), delta=st.floats(0.01, 1.0))
def test_the_proposed_batch_is_that_of_the_noise_scale(
    noise: float, sqnorm: float, delta: float
) -> None:
    moments = moments_of(noise * sqnorm, sqnorm + noise * sqnorm / 64)
    size = size_asked(GradientDiversity(delta=delta), see(moments))
    assert size == pytest.approx(max(delta * (1 + noise), 2), abs=1.01, rel=1e-6)


def test_noise_alone_is_the_data_set_and_nothing_at_all_keeps_the_batch() -> None:
    assert size_asked(GradientDiversity(), see(moments_of(64.0, 0.5), dataset_size=900)) == 900
    assert size_asked(GradientDiversity(), see(moments_of(0.0, 0.0))) == 64
    assert asked(GradientDiversity(), see()).measure_next == {"moments"}


@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan])
def test_an_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match=r"as in GradientDiversity\(delta=0.1\)"):
        GradientDiversity(delta=delta)
