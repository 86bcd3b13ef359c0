"""Whether a loss still falls at the end of its curve, or never moved."""

from __future__ import annotations

import numpy as np
import pytest

from largebatch.rules.auto_warm_up.ceiling import (
    END,
    falls,
    is_flat,
    met,
    met_flat,
    notice,
)
from largebatch.rules.auto_warm_up.gaussian_process import Posterior, posterior_of

X = np.linspace(0.0, 1.0, 128)


def curve(y: np.ndarray, *, noise: float = 0.0, seed: int = 0) -> Posterior:
    z = np.random.default_rng(seed).standard_normal(len(y))
    return posterior_of(X, y + noise * z, np.ones(len(y)))


def fell(one: Posterior) -> bool:
    return falls(one, confidence=0.95, floor=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_falls_to_the_end_or_turned_before(noise: float, seed: int) -> None:
    assert fell(curve(np.exp(-X), noise=noise, seed=seed)) or noise == 0.1, "too little is known"
    for at in (0.2, 0.5, 0.75):
        assert not fell(curve((X - at) ** 2, noise=noise, seed=seed)), at
    assert not fell(curve(X, noise=noise, seed=seed))


def test_a_loss_that_fell_long_ago_does_not_fall() -> None:
    fallen = np.maximum(1.0 - 4.0 * X, 0.0)
    assert not any(fell(curve(fallen, noise=0.1, seed=seed)) for seed in range(20))


@pytest.mark.parametrize("rest", [0.5, 0.65, 0.7, 0.75])
def test_a_loss_that_fell_and_came_to_rest_does_not_fall(rest: float) -> None:
    """Noise puts the lowest point of a plateau near the end in many runs."""
    rested = -np.minimum(X, rest)
    assert sum(fell(curve(rested, noise=0.05, seed=seed)) for seed in range(40)) <= 2


def test_a_minimum_shortly_before_the_end_that_is_seen_to_be_passed_is_none_at_the_end() -> None:
    late = np.abs(X - 0.9)
    one = curve(late)
    assert one.x[one.lowest] > END
    assert not fell(one)


def test_a_constant_loss_does_not_fall() -> None:
    assert not fell(curve(np.full(128, 2.3)))


def test_the_words_name_the_ceiling_and_a_line_to_paste() -> None:
    assert (
        met(0.05) == "the highest learning rate, high=0.05, was reached while the loss still fell"
    )
    reached = "the highest learning rate, high=0.05, was reached"
    assert met_flat(0.05) == f"{reached} and the loss has hardly changed"
    for why, said in ((met(0.05), "still fell"), (met_flat(0.05), "has hardly changed")):
        text = notice(f"warm-up ended: {why}", high=0.05, rate=0.04)
        assert said in text
        assert "high=0.05" in text
        assert "starts at the learning rate 0.04" in text
        assert "lb.AutoWarmUp(high=0.5)" in text
    assert notice("warm-up ended: no rise of the loss was detected", high=0.05, rate=0.04) == ""


def flat(one: Posterior) -> bool:
    return is_flat(one, confidence=0.95, certain=3.0, floor=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_fell_rose_or_did_both_is_not_flat(noise: float, seed: int) -> None:
    moved = (
        np.exp(-X),
        (X - 0.5) ** 2 * 4.0,
        np.maximum(1.0 - 4.0 * X, 0.0),
        np.minimum(4.0 * X, 1.0),
        np.exp(-(((X - 0.5) / 0.15) ** 2)),
    )
    for shape in moved:
        assert not flat(curve(shape, noise=noise, seed=seed))


def test_noise_alone_and_a_constant_are_flat() -> None:
    assert flat(curve(np.full(128, 2.3)))
    assert flat(curve((-1.0) ** np.arange(128)))
    found = [flat(curve(np.full(128, 2.3), noise=0.1, seed=seed)) for seed in range(100)]
    assert sum(found) >= 92


@pytest.mark.parametrize("shape", [np.zeros(128), np.exp(-X), (X - 0.5) ** 2])
def test_how_far_a_curve_moved_is_that_of_its_pairs_one_by_one(shape: np.ndarray) -> None:
    one, most = curve(shape, noise=0.1), 0.0
    for i in range(128):
        for j in range(i):
            row = one.spread[i] - one.spread[j]
            deviation = float(np.sqrt(row @ row + 1e-4 * one.unit**2))
            most = max(most, abs(float(one.mean[i] - one.mean[j])) / deviation)
    assert one.moved(floor=1e-4) == pytest.approx(most, rel=1e-6, abs=1e-6)
